"""The exception hierarchy of grokkit, with the exit codes of the command line.

GrokkitError                 1
├── UsageError               2   a wrong name, option or argument
│   ├── UnknownNameError     2   a name that is not registered; suggests the nearest one
│   └── UntrustedCodeError   2   a name that only untrusted code in a run folder may register
├── DeviceRefusedError       3   the machine cannot run this as requested
├── PlacementError           3   a tensor on another device than the run's
├── DataError                4   data missing or malformed
├── TrajectoryError          4   a run folder missing, damaged, locked or of another version
│   ├── DamagedError         4   a file that does not match its digest
│   └── MisplacedError       4   an intact file stored under the wrong name
├── ModelContractError       4   a model that a measure does not support
├── NumericsError            5   a loss or a reading that is not finite
└── Interrupted             75   stopped on request, state saved, can be resumed
    └── BudgetReached        6   stopped because its budget is spent
"""


class GrokkitError(Exception):
    """Base class of all errors of this package; `exit_code` is the exit code of the command line."""

    exit_code = 1


class UsageError(GrokkitError):
    """A wrong name, option or argument."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not registered."""


class UntrustedCodeError(UsageError):
    """A config uses a name that only the run's experiment.py may define, and that file is not on your list of trusted
    code.

    `reason` is the message without the remedy; the command line appends its own remedy (--trust).
    """

    @property
    def reason(self) -> str:
        """The unknown name, the file that may register it, and that it was not executed."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.reason} Read it, then pass trust=True"


class DeviceRefusedError(GrokkitError):
    """The machine cannot run this as requested, for example a GPU that PyTorch cannot use."""

    exit_code = 3


class PlacementError(GrokkitError):
    """A tensor of model, optimizer or batch on another device than the run's; the message names it and both devices."""

    exit_code = 3


class DataError(GrokkitError):
    """Data that is missing or malformed."""

    exit_code = 4


class TrajectoryError(GrokkitError):
    """A run folder that is missing, damaged, locked or of another version."""

    exit_code = 4


class DamagedError(TrajectoryError):
    """A file whose content does not parse or does not match its digest (not one that is temporarily unreadable)."""


class MisplacedError(TrajectoryError):
    """An intact file whose content does not match its name: of another step, measure, kind or run."""


class ModelContractError(GrokkitError):
    """A model that a measure does not support; the message names the operation and the remedy."""

    exit_code = 4


class NumericsError(GrokkitError):
    """A loss or a reading that is not finite."""

    exit_code = 5


class Interrupted(GrokkitError):
    """Interrupted on request; the state is saved and the run can be resumed."""

    exit_code = 75


class BudgetReached(Interrupted):
    """Stopped because the run's budget is spent; the state is saved, and a larger budget allows resuming."""

    exit_code = 6
