"""What is raised when data cannot be used."""


class DataError(ValueError):
    """A file, an array or a name is not usable as data; the message says which, why, and what to do."""


class DataNotAvailable(DataError):
    """The data is neither on this machine nor to be had over the network.

    Unlike damaged or mismatching files this is nobody's mistake, so that a caller may go on with other data.

    Attributes:
        reason: what was tried and how it failed, without the advice that ends the message.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason} {advice}".strip())
        self.reason = reason
