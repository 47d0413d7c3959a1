"""The errors of grokkit, drawn as a tree; each knows the exit code that the command line gives it.

GrokkitError                 1
├── UsageError               2   a wrong name, option or argument
│   ├── UnknownNameError     2   a name that no registry holds; says the nearest one
│   └── UntrustedCodeError   2   a name that only code in a run folder may register, and that is not trusted
├── DeviceRefusedError       3   the machine cannot run this as asked
├── PlacementError           3   a tensor on another device than the run's
├── DataError                4   data missing or of the wrong form
├── TrajectoryError          4   a run folder missing, damaged, locked or of another version
│   ├── DamagedError         4   a file that does not match its digest
│   └── MisplacedError       4   a whole file under the name of another
├── ModelContractError       4   a model that a measure cannot take
├── NumericsError            5   a loss or a reading that is not finite
└── Interrupted             75   stopped on request, state saved, can be resumed
    └── BudgetReached        6   stopped because its money is spent
"""


class GrokkitError(Exception):
    """What every error of this package is; `exit_code` is the command line's answer."""

    exit_code = 1


class UsageError(GrokkitError):
    """A wrong name, option or argument."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that no registry holds."""


class UntrustedCodeError(UsageError):
    """A name is known only to code in a run folder that is not on the user's list; `reason` is the message without the
    way to allow it, which the command line says in its own words."""

    @property
    def reason(self) -> str:
        """Which name, which file, and that it was not executed."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.reason} Read it, then pass trust=True"


class DeviceRefusedError(GrokkitError):
    """The machine cannot run this as asked, for example a GPU that PyTorch cannot use."""

    exit_code = 3


class PlacementError(GrokkitError):
    """A tensor of model, optimizer or batch on another device than the run's; the message names it and both devices."""

    exit_code = 3


class DataError(GrokkitError):
    """Data missing or of the wrong form."""

    exit_code = 4


class TrajectoryError(GrokkitError):
    """A run folder that is missing, damaged, locked or of another version."""

    exit_code = 4


class DamagedError(TrajectoryError):
    """A file whose content does not parse or does not match its digest; not one that cannot be read just now."""


class MisplacedError(TrajectoryError):
    """A file that is whole and not what its name says: of another step, measure, kind or run."""


class ModelContractError(GrokkitError):
    """A model that a measure cannot take; the message names the operation and the way out."""

    exit_code = 4


class NumericsError(GrokkitError):
    """A loss or a reading that is not finite."""

    exit_code = 5


class Interrupted(GrokkitError):
    """Stopped on request; the state is saved and the run can be resumed."""

    exit_code = 75


class BudgetReached(Interrupted):
    """Stopped because the run's budget is spent; the state is saved, and a larger budget goes on."""

    exit_code = 6
