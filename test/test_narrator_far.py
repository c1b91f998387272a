"""A narrator whose engine is a pool's: TLS, its token, and a model here while there is no way."""

from collections.abc import Iterator
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fleet_kit import CERTIFICATE, TOKENS, Served, serving
from narrator_harness import NarratorProcess, Probe, picture, probing
import pytest
from test_narrator_cameras import FAKE, numbers
from waiting import PATIENCE_S, wait_until

from experiments.outages import Proxy


@pytest.fixture
def served(ros_domain: int, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, tls=True) as served:
        yield served


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / 'token'
    file.write_text(TOKENS['front'])
    return file


def narrator_of(folder: Path, port: int, token: Path, *parameters: str) -> NarratorProcess:
    return NarratorProcess(
        folder / 'log.txt', f'engine:=wss://localhost:{port}', f'engine_token:={token}',
        'diagnostics_period:=0.2', *parameters, command=FAKE)


def film(probe: Probe, captions: int) -> None:
    """Publish frames until so many more captions have come."""
    due = len(probe.captions) + captions
    probe.film(picture, lambda: len(probe.captions) >= due)


def test_who_speaks_is_told_when_the_pool_is_away_and_back(
        served: Served, token: Path, tmp_path: Path):
    proxy = Proxy(served.server.port)
    with narrator_of(tmp_path, proxy.port, token, f'engine_authority:={CERTIFICATE}',
                     'fallback:=small') as narrator, probing() as probe:
        told = probe.listen(DiagnosticArray, '/diagnostics', [])

        def engine() -> DiagnosticStatus:
            return next((status for message in reversed(told) for status in message.status
                         if status.name == 'narrator: engine'), DiagnosticStatus(level=b'\3'))

        def speaks(model: str) -> bool:
            return {value.key: value.value for value in engine().values}.get('model') == model

        try:
            narrator.wait_log('the model fake runs on')
            film(probe, 3)
            assert probe.ask('what is it?', wait=True).answer == 'what is it?'
            wait_until(lambda: speaks('fake') and engine().level == DiagnosticStatus.OK,
                       PATIENCE_S, engine)
            proxy.sever()
            wait_until(lambda: speaks('small'), PATIENCE_S, engine)
            assert engine().level == DiagnosticStatus.WARN
            assert 'meanwhile small speaks here' in engine().message
            film(probe, 3)
            assert probe.ask('who is it?', wait=True).answer == 'who is it?'
            proxy.mend()
            wait_until(lambda: speaks('fake') and engine().level == DiagnosticStatus.OK,
                       PATIENCE_S, engine)
            film(probe, 3)
            assert numbers(probe) == list(range(len(probe.captions))), 'no gap'
            assert narrator.stop() == 0 and 'Traceback' not in narrator.log, narrator.log
        finally:
            proxy.close()


@pytest.mark.parametrize('secret, authority, words', [
    ('a-token-that-nobody-has', str(CERTIFICATE), 'this token is not known here'),
    (TOKENS['front'], '', 'certificate verify failed')], ids=['token', 'certificate'])
def test_why_there_is_no_way_is_said_and_the_node_ends(
        served: Served, token: Path, tmp_path: Path, secret: str, authority: str, words: str):
    token.write_text(secret)
    given = [f'engine_authority:={authority}'] if authority else []
    with narrator_of(tmp_path, served.server.port, token, *given) as narrator:
        assert narrator.process.wait(PATIENCE_S) == 1
        assert 'cannot load the model' in narrator.log and words in narrator.log, narrator.log
        assert secret not in narrator.log
