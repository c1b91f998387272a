"""
Fluency of texts, 1 to 5, as a language model judges it behind any OpenAI-compatible endpoint.

`python -m sww_ros.evaluation.fluency TEXTS.json --judge-url URL --judge-model NAME`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from http.client import HTTPException
import json
import os
from pathlib import Path
import re
from statistics import fmean
import sys
import time
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

KEY_VARIABLE = 'SWW_JUDGE_API_KEY'
"""The environment variable with the endpoint's API key; without it none is sent."""

PROMPT = Path(__file__).parent / 'prompts' / 'fluency.txt'
_PATH = '/chat/completions'
_RATING = re.compile(r'\s*([1-5])\s*', re.ASCII)
_LONGEST_PAUSE_S = 60.0


class JudgeError(RuntimeError):
    """The endpoint cannot be used, with the reason."""


def summary(ratings: Sequence[int | None]) -> dict[str, float | int | None]:
    """Return the mean of the ratings that are known (None if none is), and both counts."""
    judged = sum(rating is not None for rating in ratings)
    return dict(fluency=mean_of_known(ratings), judged=judged, unjudged=len(ratings) - judged)


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


class Judge:
    """Asks one model for ratings, one text after the other."""

    def __init__(self, url: str, model: str, *, key: str | None = None, timeout_s: float = 60.0,
                 tries: int = 4, pause_s: float = 1.0) -> None:
        """
        Prepare to ask; the first `rate` connects.

        :param url: the endpoint, e.g. http://localhost:8000 or https://api.example.com/v1
        :param model: the name that the endpoint knows the model by
        :param key: the API key; by default what the environment variable SWW_JUDGE_API_KEY holds
        :param timeout_s: how long the endpoint may be silent
        :param tries: how often a text is sent before the judge counts as unreachable
        :param pause_s: pause before the second try; doubled before each one after it
        :raises ValueError: if the URL is none of http or https, the key cannot be sent in a
            header, or there are no tries
        """
        parts = urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(f'the judge needs an http or https URL, not {url!r}')
        if tries < 1:
            raise ValueError(f'tries must be at least 1, not {tries}')
        base = url.rstrip('/').removesuffix(_PATH).removesuffix('/v1')
        self.url = f'{base}/v1{_PATH}'
        self.model = model
        self._key = (os.environ.get(KEY_VARIABLE, '') if key is None else key).strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f'the API key ({KEY_VARIABLE}) has characters that no key has')
        self._timeout_s, self._tries, self._pause_s = timeout_s, tries, pause_s
        self._prompt = PROMPT.read_text(encoding='utf-8')
        self._opener = build_opener(_NoRedirect)

    def rate(self, text: str) -> int | None:
        """
        Return 1 to 5, or None if the answer is anything but one such digit, or the text is empty.

        Too many requests (429), errors of the server (5xx), timeouts and lost connections are
        tried again.

        :raises JudgeError: if no try succeeds, or the endpoint refuses or is no such endpoint
        """
        if not text.strip():
            return None
        answer = self._post(dict(
            model=self.model, temperature=0,
            messages=[dict(role='user', content=self._prompt.replace('{text}', text))]))
        try:
            content = json.loads(answer)['choices'][0]['message'].get('content')
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise JudgeError(f'{self.url} does not answer like an OpenAI-compatible endpoint: '
                             f'{self._shorten(answer)}') from error
        match = _RATING.fullmatch(content) if isinstance(content, str) else None
        return int(match[1]) if match else None

    def _post(self, body: dict) -> bytes:
        headers = {'Content-Type': 'application/json'}
        if self._key:
            headers['Authorization'] = f'Bearer {self._key}'
        request = Request(self.url, json.dumps(body).encode(), headers)
        reason = ''
        for attempt in range(self._tries):
            last = attempt == self._tries - 1
            pause_s = self._pause_s * 2 ** attempt
            try:
                with self._opener.open(request, timeout=self._timeout_s) as response:
                    return response.read()
            except HTTPError as error:
                reason = f'HTTP {error.code}: {self._shorten(_body(error))}'
                if error.code != 429 and error.code < 500:
                    raise JudgeError(f'{self.url} refuses: {reason}') from error
                pause_s = max(pause_s, _retry_after_s(error))
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
            if not last:
                time.sleep(min(pause_s, _LONGEST_PAUSE_S))
        raise JudgeError(f'no answer from {self.url} in {self._tries} tries: {reason}')

    def _shorten(self, answer: bytes) -> str:
        """What an error message may quote of an answer: not all of it, and never the key."""
        text = ' '.join(answer.decode(errors='replace').split())
        return (text.replace(self._key, '***') if self._key else text)[:200] or '(empty)'


class _NoRedirect(HTTPRedirectHandler):
    """Reports a redirect as an error: urllib would take the key along to wherever it leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def _body(error: HTTPError) -> bytes:
    try:
        with error:
            return error.read()
    except (OSError, HTTPException):
        return b''


def _retry_after_s(error: HTTPError) -> float:
    """The pause that the endpoint asks for, in seconds; 0 if it names none, or a date."""
    asked = error.headers.get('Retry-After', '')
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


def add_judge_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add --judge-url and --judge-model, which `judge_from` reads, to a command line."""
    group = parser.add_argument_group('judge of fluency', 'An API key is read from the '
                                      f'environment variable {KEY_VARIABLE}.')
    group.add_argument('--judge-url', metavar='URL', required=required,
                       help='an OpenAI-compatible endpoint, e.g. http://localhost:8000')
    group.add_argument('--judge-model', metavar='NAME', required=required,
                       help='the model that judges, as the endpoint calls it')


def judge_from(options: argparse.Namespace) -> Judge | None:
    """
    Return the judge that the command line names, None if it names none.

    :raises ValueError: if it names a URL without a model or a model without a URL, or a bad URL
    """
    if not options.judge_url and not options.judge_model:
        return None
    if not options.judge_url or not options.judge_model:
        raise ValueError('--judge-url and --judge-model go together')
    return Judge(options.judge_url, options.judge_model)


def main(arguments: list[str] | None = None) -> int:
    """Print the summary of a file of texts as JSON; return 0 if at least one was judged."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.evaluation.fluency',
                                     description=__doc__.strip().splitlines()[0])
    parser.add_argument('texts', type=Path, help='a JSON list of texts')
    add_judge_options(parser, required=True)
    options = parser.parse_args(arguments)
    try:
        texts = json.loads(options.texts.read_text(encoding='utf-8'))
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'{options.texts} is not a JSON list of texts')
        judge = judge_from(options)
        found = summary([judge.rate(text) for text in texts])
    except (OSError, ValueError, JudgeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0 if found['judged'] else 1


if __name__ == '__main__':
    sys.exit(main())
