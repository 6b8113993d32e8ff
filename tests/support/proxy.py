"""A way to a server that can fall silent, as a cut cable or a dead host does: nothing is refused, closed or answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Hands on what it gets to a server on this machine, and back. Made by `proxy`."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._ways: list[_Way] = []

    def fall_silent(self) -> int:
        """From now on the connections that there are get nothing more, and new ones do; how many there were."""
        silenced = [way for way in self._ways if not way.is_silent and not way.is_over]
        for way in silenced:
            way.is_silent = True
        return len(silenced)

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        way = _Way()
        self._ways.append(way)
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(way.hand_on(reader, requests), way.hand_on(answers, writer))
            finally:
                requests.close()
        except OSError:
            # nobody is there: the client sees its connection end
            pass
        finally:
            way.is_over = True
            writer.close()


class _Way:
    def __init__(self) -> None:
        self.is_silent = self.is_over = False

    async def hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                if not self.is_silent:
                    writer.write(data)
                    await writer.drain()
            if not self.is_silent:
                writer.close()


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[Proxy]:
    """A proxy on a free port, in front of a server on the port `target`."""
    made = Proxy(target)
    meetings: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meetings.add(asyncio.create_task(made.meet(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for meeting in meetings:
            meeting.cancel()
        await asyncio.gather(*meetings, return_exceptions=True)
