"""Where a server listens; imports nothing large, so that an address that is taken is told at once."""

import socket

from llm_modules.errors import UserError


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that a second server on it is refused before it loads anything.

    Args:
        host: Address of this machine.
        port: Of it; 0 for any free one.

    Raises:
        UserError: If the address is taken or is none of this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host}:{port} cannot be listened on ({error}); stop what does, or choose another --host or --port"
        ) from error
