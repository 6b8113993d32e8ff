"""What PostgreSQL and its driver raise, in the storage's own words."""

import asyncpg

from service.errors import Unavailable
from service.storage.units import ForeignKeyViolation, UniqueViolation

# of a storage that is stopping, full, or out of reach: the same request may work soon
PASSING = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalClientError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)
# of a connection that is no more, or does not answer: what was under way on it may be done or not. All else that a server
# says of a statement, it says before it commits.
LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,
)


def meant(error: Exception) -> Exception:
    """The error in the storage's own words, where it has one; else the error itself, a defect of ours."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return UniqueViolation(error.constraint_name)
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        return ForeignKeyViolation(error.constraint_name)
    if isinstance(error, PASSING):
        unavailable = Unavailable()
        unavailable.__cause__ = error
        return unavailable
    return error
