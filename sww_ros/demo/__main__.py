"""Runs the demo: `python -m sww_ros.demo`, or scripts/demo."""

# ruff: noqa: E402, I001 - Ctrl-C must be quiet from the very first import on.
import os
import signal

INTERRUPTED = 130
signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

import json
import sys
import time

from sww_ros.demo.options import DemoOptions, bounded, in_words, parse


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code: 0, 1 for a failure, 130 for Ctrl-C."""
    begun_s = time.monotonic() - _age_s()
    options = bounded(parse(arguments))
    sys.stdout.reconfigure(errors='replace')
    from sww_ros.demo.processes import claim_domain
    from sww_ros.demo.processes import ChildDied
    from sww_ros.terminal.display import make_display
    claim_domain()
    from sww_ros.demo.options import advice
    from sww_ros.demo.director import DemoError, Director
    from sww_ros.demo.report import report
    from sww_ros.demo.record import summarize

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    display = None
    try:
        for number in signals:
            signal.signal(number, _interrupt)
        display = make_display('auto', sys.stdout, ordered=True)
        director = Director(options, display, begun_s)
        display.note(f'{director.record.source}, {in_words(options.seconds)}, model '
                     f'{options.model}: starting camera and narrator')
        for words in advice(options):
            display.note(words)
        try:
            record = director.play()
        finally:
            display.close()
        summary = summarize(record)
        report(summary, sys.stdout)
        _write(options, summary | dict(full_load=None))
        _write(options, summary | dict(full_load=_measured(options)))
    except KeyboardInterrupt as interrupt:
        return interrupt.args[0] if interrupt.args else INTERRUPTED
    except (ChildDied, DemoError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _write(options: DemoOptions, summary: dict) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=2) + '\n')


def _measured(options: DemoOptions) -> dict | None:
    """A camera leaves the built-in model idle most of the time: show what it can do."""
    if not options.is_show:
        return None
    from sww_ros.demo.report import measure_full_load
    from sww_ros.demo.report import report_full_load
    print('\n# measuring both sides at full load, with frames as fast as they can be perceived: '
          'a few seconds (Ctrl-C ends it)', flush=True)
    load = measure_full_load(options.model)
    report_full_load(load, sys.stdout)
    return load


def _interrupt(number: int, _: object) -> None:
    """End the run once; a second signal must not disturb the cleaning up."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(128 + number)


def _age_s() -> float:
    """Return for how long this process has been there, its set-up by scripts/run included."""
    try:
        with open('/proc/self/stat') as file:
            started = int(file.read().rpartition(')')[2].split()[19])
        with open('/proc/uptime') as file:
            return float(file.read().split()[0]) - started / os.sysconf('SC_CLK_TCK')
    except OSError:
        return 0.0


if __name__ == '__main__':
    sys.exit(main())
