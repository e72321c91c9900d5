"""Connections that neither ask nor listen are closed."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(timeout_s: float) -> type[H11Protocol]:
    """Uvicorn's HTTP protocol, which waits endlessly for the head of a request and for a client to read, with an end.

    A connection that is idle between two requests owes nothing: uvicorn's own keep-alive ends it.

    Args:
        timeout_s: A connection that has stood still for longer, in the middle of something, is closed.
    """

    class PatientProtocol(H11Protocol):
        _look: asyncio.TimerHandle | None = None
        _stood_still = False
        _last_cycle: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look_later()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._look is not None:
                self._look.cancel()
            super().connection_lost(exc)

        def _look_later(self) -> None:
            self._look = self.loop.call_later(timeout_s / 2, self._look_now)

        def _look_now(self) -> None:
            answering = self.cycle is not None and not self.cycle.response_complete
            asked_since = self.cycle is not self._last_cycle  # between two looks a whole answer may have been given
            self._last_cycle = self.cycle
            idle = self.timeout_keep_alive_task is not None and self.conn.their_state is h11.IDLE
            stands_still = self.flow.write_paused if answering else not (asked_since or idle)
            if stands_still and self._stood_still:
                self.transport.abort()  # closing would wait for the client to read what is still to be sent
                return
            self._stood_still = stands_still
            self._look_later()

    return PatientProtocol
