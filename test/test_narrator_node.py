"""A running narrator, used as a user's nodes would use it: one process for all tests here."""

from collections.abc import Iterator
import itertools
import os
from pathlib import Path
import signal
import time

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from conftest import claim_domain
import cv2
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from narrator_harness import NarratorProcess, Probe, is_gone, picture, probing, stamp_of
import numpy as np
import pytest
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from waiting import PATIENCE_S, wait_until

from sww_interfaces.action import AnswerQuestion
from sww_interfaces.srv import Ask, SetPrompt
from sww_ros.nodes import SETTINGS

HEIGHT, WIDTH = 48, 64
CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1, 'yuv422': 2}


@pytest.fixture(scope='module')
def narrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NarratorProcess]:
    domain, lock = claim_domain()
    folder = tmp_path_factory.mktemp('narrator')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(domain))
        patch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        patch.setenv('ROS_LOG_DIR', str(folder))
        with NarratorProcess(folder / 'log.txt', 'model:=fake') as process:
            yield process
    os.close(lock)


@pytest.fixture(scope='module')
def shared_probe(narrator: NarratorProcess) -> Iterator[Probe]:
    narrator.wait_log('watching /image')
    with probing() as probe:
        probe.wait_active()
        yield probe


@pytest.fixture
def probe(narrator: NarratorProcess, shared_probe: Probe) -> Probe:
    """The probe, with what it heard forgotten, before an active narrator."""
    assert narrator.process.poll() is None, narrator.log
    assert shared_probe.state() == State.PRIMARY_STATE_ACTIVE
    for heard in (shared_probe.captions, shared_probe.answers, shared_probe.latencies):
        heard.clear()
    return shared_probe


def encoded(encoding: str, padding: int = 0) -> Image:
    """Return an image whose rows end in bytes that do not belong to the picture."""
    row = WIDTH * CHANNELS[encoding]
    rows = np.full((HEIGHT, row + padding), 90, np.uint8)
    return Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=row + padding,
                 data=rows.tobytes())


def check_captions(probe: Probe, stamps: set[int]) -> None:
    """Headers are those of frames that were sent, and nothing is missing."""
    captions = list(probe.captions)
    assert {stamp_of(chunk) for chunk in captions if chunk.delta} <= stamps
    assert {chunk.header.frame_id for chunk in captions if chunk.delta} == {'eye'}
    numbers = [chunk.seq for chunk in captions]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for chunk in captions:
        if not chunk.delta:
            continue  # The end of a stream may come before its first frame.
        latency = chunk.latency.sec * 1_000_000_000 + chunk.latency.nanosec
        emitted = chunk.emitted.sec * 1_000_000_000 + chunk.emitted.nanosec
        assert latency == emitted - stamp_of(chunk) >= 0


@pytest.mark.parametrize('padding', [0, 20])
@pytest.mark.parametrize('encoding', CHANNELS)
def test_captions_flow_for_each_encoding(probe: Probe, encoding: str, padding: int):
    stamps = probe.film(lambda: encoded(encoding, padding), lambda: len(probe.captions) >= 6)
    check_captions(probe, stamps)


def test_sentences_are_published_whole(probe: Probe):
    sentences = probe.listen(String, '/narrator/caption/text', [])
    probe.film(picture, lambda: len(sentences) >= 2)
    assert all(sentence.data.startswith('step ') for sentence in sentences)
    ends = [chunk.sentence for chunk in list(probe.captions) if chunk.sentence]
    assert [sentence.data for sentence in sentences] == ends[-len(sentences):]


def test_each_step_tells_where_its_time_went(probe: Probe):
    stamps = probe.film(picture, lambda: len(probe.latencies) >= 2)
    for latency in list(probe.latencies):
        assert stamp_of(latency) in stamps
        assert (latency.header.frame_id, latency.frames) == ('eye', 2)
        assert latency.has_first_token
        seconds = {name: getattr(latency, name).sec + getattr(latency, name).nanosec / 1e9
                   for name in ('capture_to_callback', 'callback_to_engine', 'preprocess',
                                'vision', 'prefill', 'perceived', 'first_token', 'publish')}
        assert all(0 <= value < PATIENCE_S for value in seconds.values()), seconds
        parts = ('callback_to_engine', 'preprocess', 'vision', 'prefill')
        assert sum(seconds[part] for part in parts) == pytest.approx(seconds['perceived'])
        assert 0 <= latency.overlap_ratio <= 1
        assert latency.frames_perceived <= latency.frames_received


def test_answers_stream_and_can_be_waited_for(probe: Probe):
    probe.film(picture, lambda: probe.captions)
    response = probe.ask('what is it')
    assert (response.accepted, response.reason, response.complete) == (True, '', False)
    chunks = probe.wait_answer(response.question_id)
    assert [chunk.delta for chunk in chunks] == ['what ', 'is ', 'it ', '']
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk.is_final for chunk in chunks] == [False, False, False, True]
    assert chunks[-1].finish_reason == 'stop'

    response = probe.ask('and what is that', wait=True)
    assert (response.answer, response.complete, response.reason) == ('and what is that', True, '')


def test_waiting_for_an_answer_ends_in_time_and_blocks_nobody(probe: Probe):
    for seconds in (3, 30):  # A machine that is slow for three seconds may have longer.
        began = time.monotonic()
        future = probe.begin_call(Ask, 'ask', question='long', wait=True,
                                  timeout=Duration(sec=seconds))
        assert probe.ask('quick', wait=True).complete
        assert probe.state() == State.PRIMARY_STATE_ACTIVE
        overtaken = not future.done()
        response = probe.result(future)
        assert time.monotonic() - began >= seconds
        assert response.accepted and not response.complete
        assert response.answer.startswith('on on')
        assert f'not complete after {seconds} s' in response.reason
        if overtaken:
            break
    assert overtaken, 'the others waited for it'
    assert probe.call(Trigger, 'reset').success


@pytest.mark.parametrize('question, words', [
    ('', 'empty'), ('   ', 'empty'), ('x' * 100_000, '100000 characters')])
def test_bad_questions_are_refused_in_words(probe: Probe, question: str, words: str):
    response = probe.ask(question)
    assert not response.accepted
    assert words in response.reason


def bad_images() -> list[Image]:
    unknown, empty, short = encoded('rgb8'), Image(encoding='rgb8'), encoded('rgb8')
    unknown.encoding = 'yuv9'
    short.data = short.data[:-1]
    return [unknown, empty, short]


def test_bad_images_are_told_seldom_and_the_node_goes_on(
        narrator: NarratorProcess, probe: Probe):
    diagnostics = probe.listen(DiagnosticArray, '/diagnostics', [])

    def counted() -> int:
        return sum(int(value.value) for message in diagnostics[-1:] for status in message.status
                   for value in status.values if value.key == 'frames dropped (bad)')

    kinds = itertools.cycle(range(3))
    probe.film(lambda: bad_images()[next(kinds)], lambda: counted() >= 3 and 'yuv9' in narrator.log)
    assert narrator.log.count('[ERROR]') < counted()
    stamps = probe.film(picture, lambda: len(probe.captions) >= 3)
    check_captions(probe, stamps)


def test_action_streams_its_answer(probe: Probe):
    feedback = []
    handle = probe.result(probe.goals.send_goal_async(
        AnswerQuestion.Goal(question='what is this'),
        feedback_callback=lambda message: feedback.append(message.feedback.chunk)))
    assert handle.accepted
    response = probe.result(handle.get_result_async())
    assert response.status == GoalStatus.STATUS_SUCCEEDED
    result = response.result
    assert (result.answer, result.finish_reason, result.tokens) == ('what is this', 'stop', 3)
    wait_until(lambda: len(feedback) == 4)
    assert [chunk.seq for chunk in feedback] == [0, 1, 2, 3]
    assert {chunk.stream_id for chunk in feedback} == {result.question_id}
    assert probe.wait_answer(result.question_id) == feedback


def test_action_is_cancelled_within_some_tokens(probe: Probe):
    """In one of many tries: a machine that has other things to do may be late again and again."""
    late = []
    for _ in range(30):
        feedback: list = []
        handle = probe.result(probe.goals.send_goal_async(
            AnswerQuestion.Goal(question='long'),
            feedback_callback=lambda message, kept=feedback: kept.append(message.feedback.chunk)))
        wait_until(lambda kept=feedback: len(kept) >= 3)
        probe.result(handle.cancel_goal_async())
        tokens = len(feedback)
        response = probe.result(handle.get_result_async())
        assert response.status == GoalStatus.STATUS_CANCELED
        assert response.result.finish_reason == 'cancelled'
        late.append(response.result.tokens - tokens)
        # Those on the way when the cancellation came, and while its answer travelled.
        if late[-1] <= 20:
            return
    raise AssertionError(f'tokens after the cancellation: {late}')


@pytest.mark.parametrize('question', ['', 'x' * 100_000])
def test_action_rejects_bad_questions(probe: Probe, question: str):
    goal = AnswerQuestion.Goal(question=question)
    assert not probe.result(probe.goals.send_goal_async(goal)).accepted


def test_prompt_and_reset_begin_the_stream_anew(narrator: NarratorProcess, probe: Probe):
    probe.film(picture, lambda: len(probe.captions) >= 3)
    assert probe.call(SetPrompt, 'set_prompt', prompt='Look for cats.').success
    narrator.wait_log('begins anew (prompt)')
    refused = probe.call(SetPrompt, 'set_prompt', prompt='x' * 100_000)
    assert not refused.success and '100000 characters' in refused.message
    restored = probe.call(SetPrompt, 'set_prompt', prompt='')
    assert restored.success and 'Describe.' in restored.message
    assert not probe.set_parameter('prompt', 'Look for dogs.')
    assert '100000' in probe.set_parameter('prompt', 'x' * 100_000)
    assert not probe.set_parameter('prompt', '')
    asked = probe.ask('long')
    assert probe.call(Trigger, 'reset').success
    wait_until(lambda: any(chunk.finish_reason == 'reset' for chunk in probe.captions))
    probe.film(picture, lambda: probe.captions[-1].delta)
    numbers = [chunk.seq for chunk in list(probe.captions)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert asked.accepted


def test_pause_stops_the_narration(probe: Probe):
    probe.film(picture, lambda: probe.captions)
    assert probe.call(SetBool, 'pause', data=True).message == 'paused'
    frames = iter(range(10))
    unseen = probe.film(picture, lambda: next(frames) == 9, period_s=0.05)
    assert probe.call(SetBool, 'pause', data=False).success

    def told_of() -> set[int]:
        return {stamp_of(chunk) for chunk in list(probe.captions)}

    probe.film(picture, lambda: max(told_of()) > max(unseen))
    # The last one may have waited to be taken until the camera was watched again.
    assert not told_of() & (unseen - {max(unseen)})


def test_stamps_that_jump_back_begin_the_stream_anew(narrator: NarratorProcess, probe: Probe):
    probe.film(picture, lambda: probe.captions)

    def old() -> Image:
        image = picture()
        image.header.frame_id = 'eye'
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(next(ticks), 10)
        image.header.stamp.nanosec *= 100_000_000
        return image

    ticks = iter(range(1000, 2000))
    probe.film(old, lambda: any(chunk.header.stamp.sec < 1000 for chunk in probe.captions
                                if chunk.delta))
    assert 'jumped back' in narrator.log
    assert any(chunk.finish_reason == 'reset' for chunk in probe.captions)
    # Forward again: nothing to begin anew for.
    probe.film(picture, lambda: probe.captions[-1].header.stamp.sec > 1_000_000_000)


def test_diagnostics_say_how_it_goes(probe: Probe):
    diagnostics = probe.listen(DiagnosticArray, '/diagnostics', [])
    # Twice the rate that the model wants, by the stamps, however fast they are published.
    stamps = itertools.count(probe.node.get_clock().now().nanoseconds, 50_000_000)

    def filmed() -> Image:
        image = picture()
        image.header.frame_id = 'eye'
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(next(stamps), 1_000_000_000)
        return image

    def told() -> dict[str, dict[str, str]]:
        return {status.name: {value.key: value.value for value in status.values}
                for message in diagnostics[-1:] for status in message.status}

    probe.film(filmed, lambda: told() and int(
        told()['narrator: camera'].get('frames dropped (rate)', 0)) > 0 and float(
            told()['narrator: speech']['tokens per second']) > 0)
    statuses = {status.name: status for status in diagnostics[-1].status}
    assert set(statuses) == {'narrator: engine', 'narrator: camera', 'narrator: speech'}
    values = told()
    assert statuses['narrator: engine'].message == 'active'
    assert values['narrator: engine']['position_encoding'] == 'gdpe'
    assert float(values['narrator: engine']['memory [MiB]']) > 5
    camera = values['narrator: camera']
    assert camera['topic'] == '/image'
    assert 0 < int(camera['frames perceived']) < int(camera['frames received'])
    speech = values['narrator: speech']
    for measure in ('callback to perceived, p50 [ms]', 'stamp to caption, p95 [ms]',
                    'overlap ratio'):
        assert float(speech[measure]) >= 0


def test_annotated_images_are_made_while_someone_looks(probe: Probe):
    images = probe.listen(Image, '/narrator/image_annotated', [])
    wait_until(lambda: probe.node.count_publishers('/narrator/image_annotated'))
    stamps = probe.film(picture, lambda: images and probe.captions)
    image = images[-1]
    assert (image.encoding, image.height, image.width, image.step) == ('rgb8', 48, 64, 192)
    assert stamp_of(image) in stamps
    probe.film(picture, lambda: np.ptp(np.frombuffer(images[-1].data, np.uint8)) > 100)


def test_parameters_are_those_of_the_table(probe: Probe):
    names = [setting.name for setting in SETTINGS]
    values = [parameter_value_to_python(value) for value in probe.get_parameters(names)]
    assert dict(zip(names, values)) == {
        setting.name: setting.default for setting in SETTINGS} | {'model': 'fake'}
    for descriptor, setting in zip(probe.describe_parameters(names), SETTINGS):
        assert descriptor.description.startswith(setting.description)
        assert descriptor.read_only == (setting.changes == 'start')


@pytest.mark.parametrize('name, value, words', [
    ('max_answers', 3, 'max_answers takes effect when the node is configured'),
    ('max_answers', 0, 'out of range'),
    ('camera_timeout', -1.0, 'out of range'),
    ('autostart', False, 'read-only'),
    ('prompt', 7, 'type'),
])
def test_bad_changes_of_parameters_are_refused_in_words(
        probe: Probe, name: str, value: object, words: str):
    assert words in probe.set_parameter(name, value)


def test_silence_of_the_camera_is_told(narrator: NarratorProcess, probe: Probe):
    assert not probe.set_parameter('camera_timeout', 0.2)
    narrator.wait_log('no frame on /image for')
    assert not probe.set_parameter('camera_timeout', 5.0)


def test_a_killed_engine_is_reported_and_comes_back(narrator: NarratorProcess, probe: Probe):
    probe.film(picture, lambda: probe.captions)
    question = probe.ask('long').question_id
    wait_until(lambda: probe.answer(question))
    engine, = narrator.children()
    os.kill(engine, signal.SIGKILL)
    last = probe.wait_answer(question)[-1]
    assert last.finish_reason == 'error'
    assert [chunk.seq for chunk in probe.answer(question)] == list(range(last.seq + 1))
    narrator.wait_log('was killed by SIGKILL')
    wait_until(lambda: probe.ask('back again').accepted)
    assert is_gone(engine)
    probe.film(picture, lambda: probe.captions[-1].delta)
    numbers = [chunk.seq for chunk in list(probe.captions)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert 'error' in {chunk.finish_reason for chunk in probe.captions}


def test_asking_waits_for_no_engine(narrator: NarratorProcess, probe: Probe):
    engine, = narrator.children()
    os.kill(engine, signal.SIGSTOP)
    try:
        response = probe.ask('are you there?')
        assert response.accepted and not probe.answer(response.question_id)
    finally:
        os.kill(engine, signal.SIGCONT)
    probe.wait_answer(response.question_id)


def test_state_can_be_asked_for_while_the_model_loads(probe: Probe, tmp_path: Path):
    assert probe.change(Transition.TRANSITION_DEACTIVATE)
    response = probe.ask('anyone?')
    assert not response.accepted and 'activate it first' in response.reason
    assert not probe.call(Trigger, 'reset').success
    assert probe.change(Transition.TRANSITION_CLEANUP)
    go = tmp_path / 'go'
    assert not probe.set_parameter('model', f'until {go}')
    future = probe.begin_call(ChangeState, 'change_state',
                              transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    wait_until(lambda: probe.state() == State.TRANSITION_STATE_CONFIGURING)
    assert not future.done()
    # A second transition is refused, and so are questions, at once.
    assert not probe.change(Transition.TRANSITION_CONFIGURE)
    assert 'activate it first' in probe.ask('ready?').reason
    assert not future.done()
    go.touch()
    assert probe.result(future).success
    assert probe.change(Transition.TRANSITION_CLEANUP)
    assert not probe.change(Transition.TRANSITION_ACTIVATE)

    assert not probe.set_parameter('model', 'bad')
    assert not probe.change(Transition.TRANSITION_CONFIGURE)
    assert probe.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert not probe.set_parameter('model', 'fake')
    assert probe.change(Transition.TRANSITION_CONFIGURE)
    assert probe.change(Transition.TRANSITION_ACTIVATE)


def test_lifecycle_cycles_leave_nothing_behind(narrator: NarratorProcess, probe: Probe):
    def threads() -> int:
        return len(os.listdir(f'/proc/{narrator.process.pid}/task'))

    probe.reconfigure()
    before = threads()
    for _ in range(3):
        engine, = narrator.children()
        probe.reconfigure()
        assert is_gone(engine)
    probe.film(picture, lambda: len(probe.captions) >= 3)
    assert len(narrator.children()) == 1
    wait_until(lambda: threads() <= before + 3)


def test_compressed_images_are_taken(narrator: NarratorProcess, probe: Probe):
    probe.reconfigure(image_transport='compressed')
    assert '/image/compressed' in narrator.log
    jpeg = cv2.imencode('.jpg', np.full((HEIGHT, WIDTH, 3), 90, np.uint8))[1].tobytes()
    stamps = probe.film(lambda: CompressedImage(format='jpeg', data=jpeg),
                        lambda: len(probe.captions) >= 6, topic='image/compressed')
    check_captions(probe, stamps)
    before = narrator.log.count('[ERROR]')
    probe.film(lambda: CompressedImage(format='jpeg', data=jpeg[:9]),
               lambda: narrator.log.count('[ERROR]') > before, topic='image/compressed')
    probe.reconfigure(image_transport='raw')
