"""The narrator as a process: installed, started, ended, misused, with a real checkpoint."""

import itertools
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

from fake_session import SESSION
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from narrator_harness import NarratorProcess, Probe, is_gone, picture, probing
import numpy as np
import pytest
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from waiting import PATIENCE_S, wait_until

SIGNALLED_ELSEWHERE = """
import signal, threading, time
from sww_ros.node import EndingNode, run

def interrupted():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

class Waiting(EndingNode):
    def wait_for_end(self):
        threading.Thread(target=interrupted).start()
        return super().wait_for_end()

raise SystemExit(run('waiting', lambda: Waiting('waiting')))
"""
ENDED_IN_A_TRANSITION = """
import os, signal, threading, time
from rclpy.lifecycle import TransitionCallbackReturn
from sww_ros.nodes.lifecycle import ManagedNode
from sww_ros.node import run

class Loading(ManagedNode):
    def __init__(self):
        super().__init__('loading')
        self.released = threading.Event()
        self.timer = self.create_timer(0.01, self.load)

    def load(self):
        self.timer.cancel()
        self.change(self.trigger_configure)

    def on_configure(self, state):
        os.kill(os.getpid(), signal.SIGINT)
        self.released.wait()
        time.sleep(1.0)
        return TransitionCallbackReturn.FAILURE

    def release(self):
        self.released.set()

raise SystemExit(run('loading', Loading, threads=2))
"""
ENDED_BEFORE_ACTIVATE = f"""
import os, signal, time
from sww_ros.nodes.narrator import Narrator
from sww_ros.node import run

class Ended(Narrator):
    def trigger_activate(self):
        os.kill(os.getpid(), signal.SIGINT)
        while self._parts[0].engine is not None:
            time.sleep(0.01)
        return super().trigger_activate()

raise SystemExit(run('narrator', lambda: Ended({SESSION!r}), threads=4))
"""
ROOT = Path(__file__).resolve().parents[1]


def installed() -> list[str]:
    """Return the command of the installed executable, or skip where there is none."""
    index = pytest.importorskip('ament_index_python')
    try:
        return [f'{index.get_package_prefix("sww_ros")}/lib/sww_ros/narrator']
    except index.PackageNotFoundError:
        pytest.skip('sww_ros is not built here')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the ordinary format, of random weights: it says something all the time."""
    from sww_ros.shapes.checkpoint import (
        build_config,
        build_model,
        build_tokenizer,
        save_checkpoint,
    )
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp('checkpoint')
    save_checkpoint(build_model(build_config(tokenizer, hidden=64, layers=2), seed=1), tokenizer,
                    folder)
    return folder


def noise() -> Image:
    data = np.random.default_rng().integers(0, 256, (84, 84, 3), np.uint8).tobytes()
    return Image(height=84, width=84, encoding='rgb8', step=3 * 84, data=data)


def test_the_installed_narrator_speaks_with_a_real_checkpoint(
        ros_domain: int, tmp_path: Path, checkpoint: Path):
    with NarratorProcess(tmp_path / 'log.txt', f'model:={checkpoint}', 'max_answer_tokens:=20',
                         command=installed(),
                         arguments=('--log-level', 'narrator:=debug')) as narrator:
        narrator.wait_log('watching /image')
        assert 'Loading weights' not in narrator.log, 'a progress bar'
        with probing() as probe:
            stamps = probe.film(noise, lambda: len(probe.captions) >= 6)
            assert {chunk.header.frame_id for chunk in list(probe.captions)} == {'eye'}
            assert stamps
            response = probe.ask('what colour is the square?')
            assert response.accepted
            probe.film(noise, lambda: any(chunk.is_final for chunk in probe.answers))
            numbers = [chunk.seq for chunk in probe.answer(response.question_id)]
            assert numbers == list(range(len(numbers)))
            numbers = [chunk.seq for chunk in list(probe.captions)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert probe.latencies
        engine, = narrator.children()
        assert narrator.stop(signal.SIGINT) == 0, narrator.log
        assert is_gone(engine)
        assert 'Traceback' not in narrator.log


@pytest.mark.parametrize('numbers', [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)])
def test_signals_end_all_processes(
        ros_domain: int, tmp_path: Path, numbers: tuple[signal.Signals, ...]):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=fake') as narrator, probing() as probe:
        narrator.wait_log('watching /image')
        probe.film(picture, lambda: probe.captions)
        assert probe.ask('long').accepted
        engine, = narrator.children()
        for number in numbers:
            narrator.process.send_signal(number)
            time.sleep(0.1)
        assert narrator.process.wait(PATIENCE_S) == 0, narrator.log
        assert is_gone(engine)
        assert 'Traceback' not in narrator.log, narrator.log


def test_ctrl_c_while_the_model_loads_leaves_no_process(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=until /never') as narrator:
        narrator.wait_log('loading the model')
        wait_until(narrator.children)
        engine, = narrator.children()
        assert narrator.stop(signal.SIGINT) == 0
        assert is_gone(engine)
        assert 'ERROR' not in narrator.log and 'never retrieved' not in narrator.log
        assert 'the node ends: the model is not loaded' in narrator.log


def test_the_end_waits_for_a_transition_under_way(ros_domain: int):
    ended = subprocess.run([sys.executable, '-c', ENDED_IN_A_TRANSITION], timeout=PATIENCE_S,
                           stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, '')


def test_ctrl_c_between_loading_and_watching_ends_in_silence(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=fake',
                         command=[sys.executable, '-c', ENDED_BEFORE_ACTIVATE]) as narrator:
        assert narrator.process.wait(PATIENCE_S) == 0, narrator.log
        assert 'Traceback' not in narrator.log and 'ERROR' not in narrator.log, narrator.log


def test_states_are_told_in_words(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=stuck') as narrator, probing() as probe:
        narrator.wait_log('watching /image')
        probe.wait_active()
        assert probe.change(Transition.TRANSITION_DEACTIVATE)
        assert 'the narrator is inactive' in probe.ask('there?').reason
        cleanup = Transition(id=Transition.TRANSITION_CLEANUP)
        cleaned = probe.begin_call(ChangeState, 'change_state', transition=cleanup)
        wait_until(lambda: probe.state() == State.TRANSITION_STATE_CLEANINGUP)
        assert 'the narrator is cleaning up' in probe.ask('there?').reason
        assert probe.result(cleaned).success


def test_ctrl_c_that_does_not_wake_the_main_thread_is_heard(ros_domain: int):
    """As one that comes just before that thread begins to wait; here another thread gets it."""
    ended = subprocess.run([sys.executable, '-c', SIGNALLED_ELSEWHERE], timeout=PATIENCE_S)
    assert ended.returncode == 0


def test_an_engine_does_not_outlive_a_killed_node(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=fake') as narrator:
        narrator.wait_log('watching /image')
        engine, = narrator.children()
        narrator.stop(signal.SIGKILL)
        wait_until(lambda: is_gone(engine))


@pytest.mark.parametrize('parameter, words', [
    ('model:=bad', 'cannot load the model: the checkpoint bad has no config.json'),
    ('max_answers:=99', 'max_answers'),
    ('overlap:=magic', 'overlap must be one of'),
    ('qos_overrides./image.subscription.reliability:=reliabel',
     "must be one of system_default, reliable, best_effort, best_available, not 'reliabel'"),
    ('qos_overrides./image.subscription.history:=keep', 'must be one of system_default, keep_last'),
    ('qos_overrides./image.subscription.depth:=-3', 'depth must be 0 to 100000, not -3'),
    ('qos_overrides./image.subscription.depth:=many', "depth must be an integer, not 'many'"),
])
def test_a_bad_start_ends_in_words(ros_domain: int, tmp_path: Path, parameter: str, words: str):
    with NarratorProcess(tmp_path / 'log.txt', parameter) as narrator:
        assert narrator.process.wait(PATIENCE_S) == 1
        assert words in narrator.log
        assert 'Traceback' not in narrator.log


@pytest.mark.parametrize('arguments, words', [
    (['--params-file', '/none.yaml'], "'--params-file /none.yaml'. Error: Error opening YAML"),
    (['--params-file', 'BROKEN'], 'Error at line 1'),
    (['-r', '__node:=a-b'], "Couldn't parse remap rule: '-r __node:=a-b'"),
    (['nonsense'], "ROS cannot begin with these arguments: ['nonsense']"),
    (['--log-level', 'loud'], 'does not use a valid severity level'),
])
def test_arguments_that_ros_cannot_read_are_told(
        ros_domain: int, tmp_path: Path, arguments: list[str], words: str):
    broken = tmp_path / 'broken.yaml'
    broken.write_text('narrator: [1, 2\n')
    arguments = [str(broken) if text == 'BROKEN' else text for text in arguments]
    with NarratorProcess(tmp_path / 'log.txt', 'model:=fake', arguments=arguments) as narrator:
        assert narrator.process.wait(PATIENCE_S) == 1
        assert words in narrator.log
        assert 'Traceback' not in narrator.log and '.c:' not in narrator.log


def test_parameters_that_nobody_reads_are_told_with_the_nearest_name(
        ros_domain: int, tmp_path: Path):
    file = tmp_path / 'mine.yaml'
    file.write_text("""
/narrator:
  ros__parameters:
    max_answer: 2
    use_sim_tme: true
    max_queued: 3
    start_type_description_service: true
    qos_overrides:
      /image:
        subscription: {depth: 2, reliabilty: reliable}
      /elsewhere:
        subscription: {depth: 2}
/other:
  ros__parameters: {threads_: 2}
""")
    other = tmp_path / 'other.yaml'
    other.write_text('/left/narrator: {ros__parameters: {max_steps: 2}}')
    with NarratorProcess(tmp_path / 'log.txt', 'model:=fake',
                         arguments=['--params-file', str(file), '--params-file', str(other)]
                         ) as narrator:
        narrator.wait_log('watching /image')
        with probing() as probe:
            probe.wait_active()
            probe.reconfigure()
        told = re.findall(r'the parameter (\S+) is set, but there is none of that name'
                          r'(?:: did you mean (\S+)\?)?', narrator.log)
    assert f'{other} sets no parameter of /narrator, only of /left/narrator' in narrator.log
    assert sorted(told) == [
        ('max_answer', 'max_answers'),
        ('qos_overrides./elsewhere.subscription.depth',
         'qos_overrides./image.subscription.depth'),
        ('qos_overrides./image.subscription.reliabilty',
         'qos_overrides./image.subscription.reliability'),
        ('use_sim_tme', 'use_sim_time')]


def test_it_keeps_to_simulated_time_and_its_namespace(ros_domain: int, tmp_path: Path):
    with NarratorProcess(
            tmp_path / 'log.txt', 'model:=fake', 'use_sim_time:=true',
            arguments=('-r', '__ns:=/left', '-r', 'image:=camera/image_raw')) as narrator:
        narrator.wait_log('watching /left/camera/image_raw')
        with probing('/left/narrator') as probe:
            clock = probe.node.create_publisher(Clock, '/clock', QoSProfile(depth=10))
            wait_until(clock.get_subscription_count)
            film_in_simulation(probe, clock, start=5000)
            assert probe.captions[-1].emitted.sec < 6000
            # The recording begins anew.
            probe.captions.clear()
            film_in_simulation(probe, clock, start=100)
            assert 'jumped back' in narrator.log
            assert any(chunk.finish_reason == 'reset' for chunk in probe.captions)
            assert 100 <= probe.captions[-1].emitted.sec < 1000


def film_in_simulation(probe: Probe, clock, start: int) -> None:
    ticks = itertools.count(start * 10)

    def frame() -> Image:
        time_now = Clock()
        time_now.clock.sec, tenths = divmod(next(ticks), 10)
        time_now.clock.nanosec = tenths * 100_000_000
        clock.publish(time_now)
        image = picture()
        image.header.frame_id, image.header.stamp = 'eye', time_now.clock
        return image

    probe.film(frame, lambda: any(start <= chunk.header.stamp.sec < start + 900 and chunk.delta
                                  for chunk in probe.captions), topic='/left/camera/image_raw')


def test_qos_that_does_not_match_is_told(ros_domain: int, tmp_path: Path):
    with NarratorProcess(
            tmp_path / 'log.txt', 'model:=fake',
            'qos_overrides./image.subscription.reliability:=reliable') as narrator:
        narrator.wait_log('watching /image')
        with probing() as probe:
            probe.node.create_publisher(Image, 'image', best_effort())
            narrator.wait_log('offers less than this node requests (RELIABILITY)')


def best_effort() -> QoSProfile:
    from rclpy.qos import qos_profile_sensor_data
    return qos_profile_sensor_data


def test_parameters_come_from_the_file(ros_domain: int, tmp_path: Path):
    with NarratorProcess(
            tmp_path / 'log.txt', 'model:=fake', 'autostart:=false',
            arguments=('--params-file', str(ROOT / 'config/narrator.yaml'))) as narrator:
        with probing() as probe:
            value, = probe.get_parameters(['max_answer_tokens'])
            assert value.integer_value == 128
        assert os.path.exists(f'/proc/{narrator.process.pid}')
        assert 'watching' not in narrator.log
