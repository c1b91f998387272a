"""Fluency by a judge: a local HTTP server plays the endpoint."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import socket
from threading import Thread
import time

import pytest

from sww_ros.evaluation import fluency
from sww_ros.evaluation.fluency import Judge, JudgeError, main

KEY = 'a-secret-key'


def completion(content: object) -> bytes:
    """What a chat endpoint answers."""
    return json.dumps({'choices': [{'message': {'role': 'assistant', 'content': content}}]}
                      ).encode()


class Endpoint:
    """Answers request after request with what it was given: (status, body, headers)."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, bytes, dict[str, str]]] = []
        self.requests: list[tuple[str, dict[str, str], dict]] = []
        self.delay_s = 0.0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                endpoint.requests.append((self.path, dict(self.headers), body))
                status, answer, headers = endpoint.replies.pop(0)
                delay_s, endpoint.delay_s = endpoint.delay_s, 0.0
                time.sleep(delay_s)
                try:
                    self.send_response(status)
                    for name, value in (headers | {'Content-Length': str(len(answer))}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        self.thread = Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01})
        self.thread.start()

    def reply(self, content: object = None, *, status: int = 200, body: bytes | None = None,
              **headers: str) -> None:
        answer = completion(content) if body is None else body
        self.replies.append((status, answer, {k.replace('_', '-'): v for k, v in headers.items()}))

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.delenv(fluency.KEY_VARIABLE, raising=False)
    found = Endpoint()
    yield found
    found.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are written down instead of made; the server keeps its own clock."""
    made: list[float] = []

    class Clock:
        sleep = staticmethod(made.append)

    monkeypatch.setattr(fluency, 'time', Clock)
    return made


def test_ratings_are_averaged(endpoint):
    for answer in ('4', ' 5\n', '1'):
        endpoint.reply(answer)
    judge = Judge(endpoint.url, 'm')
    ratings = [judge.rate(text) for text in 'abc']
    assert ratings == [4, 5, 1]
    assert fluency.summary(ratings) == dict(fluency=pytest.approx(10 / 3), judged=3, unjudged=0)


def test_the_request_is_a_chat_completion_with_the_committed_prompt(endpoint):
    endpoint.reply('3')
    text = 'A {text} with "quotes", </text> and 東京.'
    Judge(endpoint.url, 'judge-1', key=KEY).rate(text)
    (path, headers, body), = endpoint.requests
    assert path == '/v1/chat/completions'
    assert headers['Authorization'] == f'Bearer {KEY}'
    assert headers['Content-Type'] == 'application/json'
    assert (body['model'], body['temperature']) == ('judge-1', 0)
    message, = body['messages']
    before, after = fluency.PROMPT.read_text().split('{text}')
    assert message == dict(role='user', content=before + text + after)


@pytest.mark.parametrize('ending', ['', '/', '/v1', '/v1/', '/v1/chat/completions'])
def test_the_url_may_name_the_server_or_the_endpoint(ending):
    assert Judge('http://host:8000' + ending, 'm').url == 'http://host:8000/v1/chat/completions'


def test_a_key_is_sent_only_if_there_is_one(endpoint, monkeypatch):
    endpoint.reply('3')
    endpoint.reply('3')
    Judge(endpoint.url, 'm').rate('a')
    monkeypatch.setenv(fluency.KEY_VARIABLE, KEY + '\n')
    Judge(endpoint.url, 'm').rate('a')
    assert [headers.get('Authorization') for _, headers, _ in endpoint.requests] == [
        None, f'Bearer {KEY}']


@pytest.mark.parametrize('answer', ['', 'good', '0', '6', '45', '4.5', '4/5', 'I say 4', '-3',
                                    '٣', None, ['4'], 4])
def test_what_is_not_one_digit_is_counted_as_unjudged(endpoint, answer):
    endpoint.reply(answer)
    endpoint.reply('2')
    judge = Judge(endpoint.url, 'm')
    ratings = [judge.rate(text) for text in 'ab']
    assert ratings == [None, 2]
    assert fluency.summary(ratings) == dict(fluency=2.0, judged=1, unjudged=1)


def test_an_empty_text_is_unjudged_and_not_sent(endpoint):
    rating = Judge(endpoint.url, 'm').rate(' \n')
    assert fluency.summary([rating]) == dict(fluency=None, judged=0, unjudged=1)
    assert not endpoint.requests


@pytest.mark.parametrize('status', [429, 500, 503])
def test_a_passing_error_is_tried_again(endpoint, pauses, status):
    endpoint.reply(status=status, body=b'wait')
    endpoint.reply(status=status, body=b'wait')
    endpoint.reply('4')
    assert Judge(endpoint.url, 'm').rate('a') == 4
    assert pauses == [1, 2]


def test_the_endpoint_may_ask_for_a_longer_pause(endpoint, pauses):
    for asked in ('7', '9999', 'Wed, 21 Oct 2015 07:28:00 GMT'):
        endpoint.reply(status=429, body=b'', Retry_After=asked)
    endpoint.reply('4')
    assert Judge(endpoint.url, 'm').rate('a') == 4
    assert pauses == [7, 60, 4]


def test_a_silent_endpoint_is_tried_again(endpoint, pauses):
    endpoint.delay_s = 0.5
    endpoint.reply('1')
    for _ in range(20):  # A slow one may be late more than once.
        endpoint.reply('4')
    assert Judge(endpoint.url, 'm', timeout_s=0.2, tries=20).rate('a') == 4
    assert pauses[0] == 1


def test_an_error_that_stays_is_named(endpoint, pauses):
    for _ in range(3):
        endpoint.reply(status=500, body=b'out of memory')
    with pytest.raises(JudgeError, match='no answer from .* in 3 tries: HTTP 500: out of memory'):
        Judge(endpoint.url, 'm', tries=3).rate('a')
    assert pauses == [1, 2]


def test_an_unreachable_endpoint_is_named(pauses, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{taken.getsockname()[1]}'
        with pytest.raises(JudgeError, match=f'no answer from {url}/v1.* in 4 tries: .*refused'):
            Judge(url, 'm').rate('a')
    assert pauses == [1, 2, 4]


def test_a_refusal_is_not_tried_again_and_never_shows_the_key(endpoint, pauses):
    endpoint.reply(status=401, body=f'{{"error": "wrong key {KEY}"}}'.encode())
    with pytest.raises(JudgeError, match='refuses: HTTP 401: .*wrong key') as caught:
        Judge(endpoint.url, 'm', key=KEY).rate('a')
    assert KEY not in str(caught.value)
    assert not pauses


def test_a_redirect_does_not_take_the_key_along(endpoint):
    endpoint.reply(status=302, body=b'', Location=f'{endpoint.url}/elsewhere')
    with pytest.raises(JudgeError, match='HTTP 302'):
        Judge(endpoint.url, 'm', key=KEY).rate('a')
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize('body', [b'<html>', b'', b'[]', b'{"choices": []}', b'null', b'\xff',
                                  b'{"choices": [{"message": null}]}'])
def test_what_is_no_chat_completion_is_an_error(endpoint, body):
    endpoint.reply(body=body)
    with pytest.raises(JudgeError, match='does not answer like an OpenAI-compatible endpoint'):
        Judge(endpoint.url, 'm').rate('a')


@pytest.mark.parametrize('url', ['localhost:8000', 'file:///etc/hosts', 'ftp://host', 'http://',
                                 ''])
def test_only_http_urls_are_taken(url):
    with pytest.raises(ValueError, match='needs an http or https URL'):
        Judge(url, 'm')


@pytest.mark.parametrize('key', ['two\nlines', 'schlüssel'])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key):
    with pytest.raises(ValueError, match=fluency.KEY_VARIABLE) as caught:
        Judge('http://host', 'm', key=key)
    assert key not in str(caught.value)


def test_at_least_one_try_is_made():
    with pytest.raises(ValueError, match='at least 1'):
        Judge('http://host', 'm', tries=0)


def run(tmp_path, texts: object, *options: str) -> int:
    """Run the command line on a file of texts."""
    path = tmp_path / 'texts.json'
    path.write_text(json.dumps(texts))
    return main([str(path), *options])


def test_the_command_prints_mean_and_counts(endpoint, tmp_path, capsys):
    for answer in ('4', 'well', '5'):
        endpoint.reply(answer)
    options = ('--judge-url', endpoint.url, '--judge-model', 'm')
    assert run(tmp_path, ['a', 'b', 'c'], *options) == 0
    assert json.loads(capsys.readouterr().out) == dict(fluency=4.5, judged=2, unjudged=1)
    endpoint.reply('well')
    assert run(tmp_path, ['a'], *options) == 1


def test_the_command_names_mistakes(tmp_path, capsys):
    assert run(tmp_path, ['a'], '--judge-url', 'nowhere', '--judge-model', 'm') == 2
    assert "error: the judge needs an http or https URL, not 'nowhere'" in capsys.readouterr().err
    assert run(tmp_path, {'a': 1}, '--judge-url', 'http://host', '--judge-model', 'm') == 2
    assert 'is not a JSON list of texts' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, ['a'], '--judge-url', 'http://host')


def test_a_judge_is_optional_on_other_command_lines():
    parser = fluency.argparse.ArgumentParser()
    fluency.add_judge_options(parser)
    assert fluency.judge_from(parser.parse_args([])) is None
    both = parser.parse_args(['--judge-url', 'http://host', '--judge-model', 'm'])
    assert fluency.judge_from(both).model == 'm'
    with pytest.raises(ValueError, match='go together'):
        fluency.judge_from(parser.parse_args(['--judge-model', 'm']))
