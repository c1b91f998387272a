"""`python -m sww_ros.narrate` and bags: which pictures are seen, what is written and refused."""

from __future__ import annotations

from itertools import pairwise
import json
from pathlib import Path
import sys

from narrate_kit import (
    LATE_NS,
    QUESTION,
    STORE,
    camera,
    checkpoint,
    image,
    nanoseconds,
    narrate,
    pictures,
    read_bag,
    stamps,
    write_bag,
)
import pytest
from rosbags.highlevel import AnyReader

from sww_ros import bags
from sww_ros.frames import FrameChoice, FrameSampler
from sww_ros.library import play_steps
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, TextDelta
from sww_ros.streaming.session import Session

__all__ = ['checkpoint', 'narrate', 'pictures']
STEPS = 8


def clock(at_ns: int):
    """Return a message of another topic."""
    kind = 'builtin_interfaces/msg/Time'
    return '/tick', at_ns, (kind, STORE.types[kind](at_ns // 10**9, at_ns % 10**9))


def taken() -> list[int]:
    """Return which pictures the node takes."""
    sampler = FrameSampler(2.0)
    return [index for index, stamp_ns in enumerate(stamps())
            if sampler.choose(stamp_ns) is FrameChoice.TAKE]


def said_by_a_session(checkpoint, pictures, ends: bool) -> list[TextDelta]:
    """Return what is said of the pictures that the node would take of these."""
    frames = [(pictures[at], stamps()[at]) for at in taken()]
    assert len(frames) == 2 * STEPS
    with Session(checkpoint, SessionConfig(schedule='wait_k')) as session:
        return [event for events in play_steps(session, frames, ends=ends) for event in events
                if isinstance(event, TextDelta)]


@pytest.mark.parametrize('plugin, compressed, stored', [
    ('SQLITE3', False, 'NONE'), ('SQLITE3', True, 'FILE'), ('MCAP', True, 'STORAGE'),
    ('MCAP', False, 'MESSAGE')])
def test_words_and_stamps_are_those_of_a_session(narrate, checkpoint, pictures, tmp_path, plugin,
                                                 compressed, stored):
    said = said_by_a_session(checkpoint, pictures, ends=True)
    source = write_bag(tmp_path / 'in', [
        *camera(pictures, compressed=compressed), clock(stamps()[0])], plugin, stored)
    assert narrate(source, tmp_path / 'out') == 0
    written = read_bag(tmp_path / 'out')
    chunks = [(at_ns, each) for topic, at_ns, each in written if topic == bags.CAPTION]
    assert [(each.stream_id, each.seq, each.delta, each.sentence, each.is_final,
             each.finish_reason, each.video, each.steps_seen, each.frames_seen,
             nanoseconds(each.header.stamp), each.header.frame_id) for _, each in chunks] == [
        (each.stream_id, each.seq, each.delta, each.sentence, each.final, each.finish_reason,
         each.video, each.steps_seen, each.frames_seen, each.stamp_ns, 'front')
        for each in said]
    assert len(chunks) > 8
    for at_ns, each in chunks:
        assert at_ns == nanoseconds(each.emitted) == nanoseconds(each.header.stamp) + LATE_NS
        assert nanoseconds(each.latency) == LATE_NS
    sentences = [each.sentence for each in said if each.sentence]
    assert [each.data for topic, _, each in written if topic == bags.SENTENCE] == sentences != []
    assert {topic for topic, *_ in written} == {bags.CAPTION, bags.SENTENCE, bags.LATENCY}
    assert next((tmp_path / 'out').glob('out.*')).suffix == {
        'SQLITE3': '.db3', 'MCAP': '.mcap'}[plugin]


def test_each_step_tells_where_its_time_went(narrate, pictures, tmp_path):
    source = write_bag(tmp_path / 'in', camera(pictures))
    assert narrate(source, tmp_path / 'out') == 0
    steps = [each for topic, _, each in read_bag(tmp_path / 'out') if topic == bags.LATENCY]
    assert [each.step for each in steps] == [*range(STEPS)]
    assert all(each.has_first_token for each in steps)
    for each in steps:
        assert nanoseconds(each.capture_to_callback) == LATE_NS
        assert nanoseconds(each.perceived) >= nanoseconds(each.vision) > 0
        stamp_ns = nanoseconds(each.header.stamp)
        assert each.frames_received == stamps().index(stamp_ns) + 1
        assert each.frames_perceived == 2 * (each.step + 1)
        assert each.frames_dropped == each.frames_received - each.frames_perceived


def test_other_topics_are_carried_over_as_they_are(narrate, pictures, tmp_path):
    source = write_bag(tmp_path / 'in', sorted(
        [*camera(pictures), *(clock(at_ns) for at_ns in stamps()[::7]),
         (bags.SENTENCE, stamps()[3], ('std_msgs/msg/String', STORE.types['std_msgs/msg/String'](
             'said by a node')))], key=lambda each: each[1]))

    def raw(path: Path) -> list[tuple[str, str, int, bytes]]:
        with AnyReader([path]) as reader:
            return [(connection.topic, connection.msgtype, at_ns, bytes(data))
                    for connection, at_ns, data in reader.messages()]

    assert narrate(source, tmp_path / 'out', '--carry') == 0
    whole = raw(tmp_path / 'out')
    assert [each for each in whole if each[0] not in bags.TOPICS] == [
        each for each in raw(source) if each[0] not in bags.TOPICS]
    assert b'said by a node' not in b''.join(data for *_, data in whole)
    assert all(one[2] <= next_one[2] for one, next_one in pairwise(whole))
    # What is said of a picture stands behind it.
    shown = [at for at, each in enumerate(whole) if each[0] == '/front/image']
    first = next(at for at, each in enumerate(whole) if each[0] == bags.CAPTION)
    assert whole[first][2] == whole[max(at for at in shown if at < first)][2]


def test_ros_reads_what_is_written(narrate, pictures, tmp_path):
    serialization = pytest.importorskip('rclpy.serialization')
    messages = pytest.importorskip('sww_interfaces.msg')
    (tmp_path / 'questions.txt').write_text(f'4.5: {QUESTION}\n')
    source = write_bag(tmp_path / 'in', camera(pictures))
    assert narrate(source, tmp_path / 'out', '--questions', tmp_path / 'questions.txt') == 0
    answer = ''
    with AnyReader([tmp_path / 'out']) as reader:
        assert {each.topic: each.msgtype for each in reader.connections} == bags.TOPICS
        for connection, _, raw in reader.messages():
            if connection.topic == bags.LATENCY:
                step = serialization.deserialize_message(bytes(raw), messages.StepLatency)
                assert step.frames == 2
            if connection.topic == bags.ANSWER:
                chunk = serialization.deserialize_message(bytes(raw), messages.TextChunk)
                assert chunk.stream_id == 'q1' != NARRATION
                answer += chunk.delta
        types = {each.msgtype.rpartition('/')[2]: each.digest for each in reader.connections}
    assert answer.strip() and chunk.is_final and chunk.finish_reason == chunk.FINISH_STOP
    index = pytest.importorskip('ament_index_python')
    share = Path(index.get_package_share_directory('sww_interfaces'))
    for name in ('TextChunk', 'StepLatency'):
        described = json.loads((share / f'msg/{name}.json').read_text())
        hashes = {each['type_name']: each['hash_string'] for each in described['type_hashes']}
        assert types[name] == hashes[f'sww_interfaces/msg/{name}']


def test_the_image_topic_is_found_or_asked_for(narrate, pictures, tmp_path, capsys):
    few = pictures[:20]
    source = write_bag(tmp_path / 'in', [*camera(few), *camera(few[::-1], '/rear/image')])
    assert narrate(source, tmp_path / 'a.jsonl') == 1
    said = capsys.readouterr().err
    assert '/front/image (20 pictures), /rear/image (20 pictures)' in said and '--topic' in said
    assert narrate(source, tmp_path / 'a.jsonl', '--topic', '/left') == 1
    assert 'no image topic /left; it has /front/image' in capsys.readouterr().err
    assert narrate(source, tmp_path / 'a.jsonl', '--topic', '/front/image') == 0
    alone = write_bag(tmp_path / 'alone', [*camera(few), clock(stamps()[0])])
    assert narrate(alone, tmp_path / 'b.jsonl') == 0
    assert (tmp_path / 'a.jsonl').read_bytes() == (tmp_path / 'b.jsonl').read_bytes() != b''


def test_bags_without_usable_pictures_are_refused(narrate, pictures, tmp_path, capsys):
    def refused(source: Path, *words: str) -> None:
        assert narrate(source, tmp_path / 'out.vtt') == 1
        said = capsys.readouterr().err
        assert str(source) in said and all(each in said for each in words), said

    refused(write_bag(tmp_path / 'none', [clock(stamps()[0])]), 'has no pictures', 'none')
    depth = [('/depth', at_ns, image(pixels[:, :56], at_ns, encoding='32FC1'))
             for pixels, at_ns in zip(pictures, stamps())]
    refused(write_bag(tmp_path / 'depth', depth), 'nothing of', 'holds depth')
    (tmp_path / 'old.bag').write_bytes(b'#ROSBAG V2.0\n')
    refused(tmp_path / 'old.bag', 'ROS 1', 'rosbags-convert')
    cut = write_bag(tmp_path / 'cut', camera(pictures[:4]), 'MCAP')
    file = cut / 'cut.mcap'
    file.write_bytes(file.read_bytes()[:-500])
    refused(cut, 'cannot read the bag', 'reindex')
    (cut / 'metadata.yaml').unlink()
    refused(file, 'cannot read the bag', 'reindex')


def test_pictures_without_stamps_are_stamped_by_the_recorder(narrate, pictures, tmp_path):
    write_bag(tmp_path / 'stamped', camera(pictures))
    write_bag(tmp_path / 'plain', camera(pictures, stamps_ns=[0] * len(pictures)))
    for name in ('stamped', 'plain'):
        assert narrate(tmp_path / name, tmp_path / f'{name}.jsonl') == 0
    stamped, plain = ([json.loads(line) for line in (tmp_path / f'{name}.jsonl').open()]
                      for name in ('stamped', 'plain'))
    assert len(stamped) == len(plain) > 1
    for one, other in zip(stamped, plain):
        assert other == one | {key: one[key] + LATE_NS for key in (
            'start_stamp_ns', 'end_stamp_ns')}


def test_where_stamps_jump_back_another_video_begins(narrate, pictures, tmp_path):
    half = len(pictures) // 2
    write_bag(tmp_path / 'whole', camera(pictures[:half]))
    twice = [*pictures[:half]] * 2
    write_bag(tmp_path / 'twice', camera(twice, stamps_ns=stamps()[:half] * 2))
    for name in ('whole', 'twice'):
        assert narrate(tmp_path / name, tmp_path / f'{name}.jsonl') == 0
    once, both = ([json.loads(line) for line in (tmp_path / f'{name}.jsonl').open()]
                  for name in ('whole', 'twice'))
    assert [each['text'] for each in both] == [each['text'] for each in once] * 2 != []
    assert [each['end_stamp_ns'] for each in both] == [each['end_stamp_ns'] for each in once] * 2
    # The clock of the recording goes on: the second begins half a second after the last picture.
    shift = (half - 1) / 10 + 0.5
    assert [each['start'] for each in both[len(once):]] == pytest.approx(
        [each['start'] + shift for each in once])


def test_a_picture_that_cannot_be_read_is_left_out_and_told(narrate, pictures, tmp_path, capsys):
    messages = camera(pictures)
    _, _, (_, broken) = messages[taken()[4]]
    broken.data = broken.data[:-5]
    source = write_bag(tmp_path / 'in', messages)
    assert narrate(source, tmp_path / 'out') == 0
    assert '1 pictures were left out: 84 rows' in capsys.readouterr().err
    steps = [each for topic, _, each in read_bag(tmp_path / 'out') if topic == bags.LATENCY]
    assert [nanoseconds(each.header.stamp) for each in steps] == [
        stamps()[taken()[at]] for at in (1, 3, 6, 8, 10, 12, 14, 15)]
    assert [each.frames for each in steps] == [2] * 7 + [1]


def test_a_node_says_the_same_while_the_bag_is_played(narrate, checkpoint, pictures, tmp_path):
    serialization = pytest.importorskip('rclpy.serialization')
    from builtin_interfaces.msg import Time
    import narrator_harness as harness
    import rosgraph_msgs.msg as rosgraph
    from sensor_msgs.msg import Image
    source = write_bag(tmp_path / 'in', camera(pictures))
    assert narrate(source, tmp_path / 'out') == 0
    expected = len(said_by_a_session(checkpoint, pictures, ends=False))
    command = [sys.executable, '-m', 'sww_ros.nodes.narrator']
    with harness.NarratorProcess(
            tmp_path / 'log', 'use_sim_time:=true', 'schedule:=wait_k',
            'qos_overrides./image.subscription.reliability:=reliable',
            'qos_overrides./image.subscription.depth:=100',
            command=command), harness.probing() as probe:
        probe.wait_active()
        clock, camera_topic = (probe.node.create_publisher(kind, topic, 100) for kind, topic in (
            (rosgraph.Clock, '/clock'), (Image, 'image')))
        harness.wait_until(clock.get_subscription_count)
        harness.wait_until(camera_topic.get_subscription_count)
        with AnyReader([source]) as reader:
            for index, (_, at_ns, raw) in enumerate(reader.messages()):
                clock.publish(rosgraph.Clock(clock=Time(
                    sec=at_ns // 10**9, nanosec=at_ns % 10**9)))
                camera_topic.publish(serialization.deserialize_message(bytes(raw), Image))
                # Of a step that was met with silence the next one tells.
                steps = sum(at <= index for at in taken()) // 2 - 1
                harness.wait_until(lambda: len(probe.latencies) >= steps)  # noqa: B023
        harness.wait_until(lambda: len(probe.captions) >= expected)

    def told(chunks) -> list[tuple]:
        return [(each.delta, each.sentence, each.steps_seen, each.frames_seen,
                 nanoseconds(each.header.stamp), each.header.frame_id) for each in chunks]

    recorded = [each for topic, _, each in read_bag(tmp_path / 'out') if topic == bags.CAPTION]
    assert told(probe.captions) == told(recorded[:expected]) != []
