from .page import write as write
from .renewal import renew as renew

__all__ = ["renew", "write"]
