"""Training data: annotations become samples, samples become frames; what is broken is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from render_clips import write_all
from video_kit import GRAYS, needs_x264, shown, write_video

from sww_ros.shapes.checkpoint import build_tokenizer
from sww_ros.training.annotations import (
    PAPER,
    ClipFilter,
    Rejected,
    Report,
    guess_form,
    read_annotations,
)
from sww_ros.training.clips import ClipFeed
from sww_ros.training.frames import Sample, VideoError, read_frames

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / 'test/data/clips'


@pytest.fixture(scope='module')
def tokenizer():
    return build_tokenizer()


def read_pe_video(path: Path, tokenizer, limits: ClipFilter | None = PAPER, prompt: str = 'Say.',
                  **options) -> list[Sample]:
    return read_annotations([path], form='pe_video', tokenizer=tokenizer, limits=limits,
                            prompt=prompt, **options)


def read_funqa(path: Path, **options) -> list[Sample]:
    return read_annotations([path], form='funqa', prompt='', **options)


def words(text: str, **_) -> dict:
    """Count words as tokens."""
    return dict(input_ids=text.split())


def write_lines(path: Path, *records: object) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text('\n'.join(lines) + '\n')
    return path


def empty_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# The committed clips.


def test_committed_captions_pass_the_papers_filter_but_one(tokenizer):
    report = Report()
    samples = read_pe_video(CLIPS / 'pe_video.jsonl', tokenizer, report=report)
    assert len(samples) == report.kept == 9
    assert report.left_out == {'said too little': 1}
    assert str(report).startswith('kept 9 of 10 samples; 1 said too little\n')
    assert 'pe_video.jsonl:10: 1.833 tokens a second, outside 3 to 5' in str(report)


def test_committed_clips_have_the_frames_that_they_should():
    samples = read_pe_video(CLIPS / 'pe_video.jsonl', None, limits=None)
    samples += read_funqa(CLIPS / 'funqa.json')
    assert len(samples) == 20
    for sample in samples:
        frames = read_frames(sample)
        assert frames.shape == (2 * sample.length_s, 84, 84, 3), sample
        assert frames.dtype == np.uint8
    assert sum(path.stat().st_size for path in CLIPS.iterdir()) < 300_000


@needs_x264
def test_committed_clips_come_from_their_script(tmp_path: Path):
    write_all(tmp_path)
    for name in ('pe_video.jsonl', 'funqa.json'):
        assert (tmp_path / name).read_text() == (CLIPS / name).read_text()
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in CLIPS.iterdir()}
    for ours, theirs in zip(read_funqa(tmp_path / 'funqa.json'), read_funqa(CLIPS / 'funqa.json')):
        # Another build of the encoder may round differently.
        difference = read_frames(ours).astype(int) - read_frames(theirs)
        assert np.abs(difference).mean() < 3


def test_reading_needs_no_ros():
    code = ('import sys; import sww_ros.training.frames, sww_ros.training.annotations, '
            'sww_ros.training.clips, sww_ros.images; '
            'assert "rclpy" not in sys.modules')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, timeout=300)


# The filter.


@pytest.mark.parametrize('seconds, tokens, reason', [
    (5.0, 15, None), (5.0, 25, None), (30.0, 90, None), (30.0, 150, None), (10.0, 40, None),
    (4.9, 20, 'too short'), (30.1, 120, 'too long'),
    (10.0, 29, 'said too little'), (10.0, 51, 'said too much'),
])
def test_filter_keeps_its_borders(seconds: float, tokens: int, reason: str | None):
    sample = Sample(Path('a.mp4'), '', 'word ' * tokens, source='a:1', duration_s=seconds)
    if reason is None:
        ClipFilter().check(sample, words)
        return
    with pytest.raises(Rejected, match='a:1: .* outside') as caught:
        ClipFilter().check(sample, words)
    assert caught.value.reason == reason


def test_filter_takes_other_ranges_and_the_annotated_part():
    sample = Sample(Path('a.mp4'), '', 'one two', start_s=1, end_s=3, duration_s=100)
    ClipFilter((1, 2), (1, 1)).check(sample, words)
    with pytest.raises(Rejected, match='2 s, outside 0 to 1'):
        ClipFilter((0, 1)).check(sample, words)


def test_missing_duration_is_read_from_the_video(tmp_path: Path):
    write_video(tmp_path / 'six.mp4', range(0, 6000, 500))
    (tmp_path / 'bad.mp4').write_bytes(b'no video')
    path = write_lines(tmp_path / 'a.jsonl',
                       dict(video='six.mp4', caption='word ' * 24),
                       dict(video='bad.mp4', caption='word ' * 24))
    report = Report()
    (sample,) = read_pe_video(path, words, report=report)
    assert sample.length_s == pytest.approx(6, abs=0.6)
    assert report.left_out == {'of a broken video': 1}
    assert 'a.jsonl:2: cannot read the video' in report.examples[0]


# The forms.


def test_pe_video_takes_its_keys_and_resolves_paths(tmp_path: Path):
    empty_files(tmp_path, 'a.mp4', 'deep/b.mp4', 'elsewhere/c.mp4')
    path = write_lines(tmp_path / 'a.jsonl',
                       dict(video='a.mp4', caption=' one '),
                       dict(video_path='deep/b.mp4', caption='two', start=1, end=2.5),
                       '',
                       dict(path=str(tmp_path / 'elsewhere/c.mp4'), caption='three', duration=9))
    samples = read_pe_video(path, None, limits=None, prompt='What now?')
    assert [s.video.name for s in samples] == ['a.mp4', 'b.mp4', 'c.mp4']
    assert samples[0] == Sample(tmp_path / 'a.mp4', 'What now?', 'one', source=f'{path}:1')
    assert (samples[1].start_s, samples[1].end_s, samples[1].length_s) == (1, 2.5, 1.5)
    assert samples[2].source == f'{path}:4' and samples[2].duration_s == 9
    other = write_lines(tmp_path / 'b.jsonl', dict(video='c.mp4', caption='x'))
    (sample,) = read_pe_video(other, None, limits=None, video_root=tmp_path / 'elsewhere')
    assert sample.video == tmp_path / 'elsewhere/c.mp4'
    assert sample.prompt == 'Say.'


def test_funqa_takes_both_spellings_and_finds_videos_in_its_folders(tmp_path: Path):
    empty_files(tmp_path, 'train_humor/H_A_1.mp4', 'c.mp4')
    path = tmp_path / 'funqa.json'
    path.write_text(json.dumps([
        dict(instruction='Why?', visual_input='H_A_1.mp4', output=' So.', task='H3', ID='1'),
        dict(question='Where?', video='c.mp4', answer='Here.', start=2, end=4),
        dict(instruction='When?', visual_input='H_A_1.mp4', output='[1, 3]', task='H1', ID='2'),
    ], indent=1))
    report = Report()
    why, where = read_funqa(path, report=report)
    assert why == Sample(tmp_path / 'train_humor/H_A_1.mp4', 'Why?', 'So.', source=f'{path}:2')
    assert (where.prompt, where.answer) == ('Where?', 'Here.')
    assert (where.start_s, where.end_s, where.source) == (2, 4, f'{path}:9')
    assert report.left_out == {'asking for times': 1}
    assert [s.answer for s in read_funqa(path, localization=True)] == ['So.', 'Here.', '[1, 3]']


def conversation(stream, **video) -> list[dict]:
    return [dict(role='user', content=[
        dict(type='video', video='a.mp4', video_start=10.0, video_end=80.0) | video,
        dict(type='text', text='Say what you see.', previous='Before.', title='A')]),
        dict(role='assistant', content=[dict(type='text_stream', text_stream=stream)])]


@pytest.mark.parametrize('as_array', [False, True])
def test_timed_words_are_cut_into_clips_between_words(tmp_path: Path, as_array: bool):
    empty_files(tmp_path, 'a.mp4')
    words = [[10.0, 10.4, ' So'], [10.4, 33.3, 'here '], [40.0, 41.0, ''], [60.0, 80.0, 'it goes']]
    records = [conversation(words), conversation([[12.0, 13.0, 'Hm.']], video_end=14.0)]
    path = tmp_path / 'live.jsonl'
    path.write_text(json.dumps(records) if as_array
                    else '\n'.join(map(json.dumps, [*records, [0, 1000]])))
    assert guess_form(path) == 'text_stream'
    report = Report()
    # 70 s are three parts of less than 30 s; nothing is said in the middle one.
    first, last, short = read_annotations([path], prompt='Unused.', report=report)
    assert (first.answer, last.answer, short.answer) == ('So here', 'it goes', 'Hm.')
    assert first.prompt == 'Say what you see.' and first.video == tmp_path / 'a.mp4'
    assert [word for _, word in (*first.timed, *last.timed)] == ['So', 'here', 'it goes']
    heard = [at_s for s in (first, last, short) for at_s, _ in s.timed]
    assert heard == pytest.approx([0.4, 23.3, 70 / 3, 3.0]), 'from the start of each part'
    borders = [at_s for s in (first, last, short) for at_s in (s.start_s, s.end_s)]
    assert borders == pytest.approx([10, 10 + 70 / 3, 80 - 70 / 3, 80, 10, 14])
    assert (report.kept, report.left_out) == (2, {})


@pytest.mark.parametrize('stream, words_of_it', [
    ([[1, 2]], '[1, 2] is not [start, end, "word"]'), ([[1, 2, 3]], '[1, 2, 3] is not [start'),
    ([['1', 2, 'x']], 'is not [start'), ('words', "'w' is not [start"), (7, '"text_stream": '),
    ([], 'nothing is said; leave it out'), ([[10, 11, '  ']], 'nothing is said'),
    (None, 'there is no "video_end" or no "text_stream"')])
def test_timed_words_of_another_form_are_left_out(tmp_path: Path, stream, words_of_it: str):
    empty_files(tmp_path, 'a.mp4')
    path, report = write_lines(tmp_path / 'a.jsonl', conversation([[10.0, 11.0, 'Yes.']]),
                               conversation(stream)), Report()
    assert len(read_annotations([path], prompt='', report=report)) == 1
    assert report.left_out == {'malformed': 1} and words_of_it in report.examples[0]


@pytest.mark.parametrize('line, reason, words_of_it', [
    ('{"video": "a.mp4", ', 'malformed', 'is not an object; write'),
    ('7', 'malformed', '7 is not an object'),
    (dict(caption='x'), 'malformed', 'there is no "video" or "video_path" or "path"; add "video"'),
    (dict(video='a.mp4'), 'malformed', 'there is no "caption"; add "caption"'),
    (dict(video='a.mp4', caption='  '), 'malformed', '"caption" is "  "; it must be a text'),
    (dict(video='a.mp4', caption=3), 'malformed', '"caption" is 3; it must be a text'),
    (dict(video='a.mp4', caption='x', duration='6 s'), 'malformed',
     '"duration" is "6 s"; it must be seconds, 0 or more'),
    (dict(video='a.mp4', caption='x', start=-1), 'malformed', '"start" is -1'),
    (dict(video='a.mp4', caption='x', start=True), 'malformed', '"start" is true'),
    ('{"video": "a.mp4", "caption": "x", "end": NaN}', 'malformed', '"end" is NaN'),
    (dict(video='a.mp4', caption='x', start=5, end=5), 'malformed', '"end" is 5 s, the start 5 s'),
    (dict(video='no.mp4', caption='x'), 'without video', 'no.mp4; paths are relative to'),
])
def test_bad_record_is_named_and_left_out(tmp_path: Path, line, reason: str, words_of_it: str):
    empty_files(tmp_path, 'a.mp4')
    good = dict(video='a.mp4', caption='fine')
    path, report = write_lines(tmp_path / 'a.jsonl', good, line, good), Report()
    assert len(read_pe_video(path, None, limits=None, report=report)) == 2
    assert report.left_out == {reason: 1}
    assert report.examples[0].startswith(f'{path}:2: ')
    assert words_of_it in report.examples[0]


def test_files_without_a_usable_sample_are_errors(tmp_path: Path):
    with pytest.raises(ValueError, match='cannot read the annotations .*none.json: No such file'):
        read_funqa(tmp_path / 'none.json')
    with pytest.raises(ValueError, match='no usable sample in .*a.jsonl: kept 0 of 0'):
        read_pe_video(write_lines(tmp_path / 'a.jsonl'), None)
    with pytest.raises(ValueError, match='no usable sample .*1 malformed\n .*a.jsonl:1: there is'):
        read_pe_video(write_lines(tmp_path / 'a.jsonl', dict(video='a.mp4')), None)
    (tmp_path / 'a.jsonl').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='not UTF-8'):
        read_pe_video(tmp_path / 'a.jsonl', None)


@pytest.mark.parametrize('text, words_of_it', [
    ('[\n{"video": 1},\n{"video" 2}]', r'a.json:3: not JSON'),
    ('[\n{"video": 1}\n{"video": 2}]', r'a.json:3: a comma or \] is missing'),
    ('[\n{"video": 1}', r'a.json:2: a comma or \] is missing'),
])
def test_broken_array_is_an_error_with_its_line(tmp_path: Path, text: str, words_of_it: str):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(ValueError, match=words_of_it):
        read_funqa(tmp_path / 'a.json')


def test_records_of_an_array_in_one_line_are_told_apart(tmp_path: Path):
    """FunQA's files are one line each: that a record is on line 1 tells nothing."""
    empty_files(tmp_path, 'a.mp4')
    good = dict(visual_input='a.mp4', instruction='Why?', output='So.')
    path, report = tmp_path / 'a.json', Report()
    path.write_text(json.dumps([good, dict(good, output=''), good, dict(good, output=3)]))
    first, third = read_funqa(path, report=report)
    assert (first.source, third.source) == (f'{path}:1 (record 1)', f'{path}:1 (record 3)')
    assert [text.split(': ')[0] for text in report.examples] == [
        f'{path}:1 (record 2)', f'{path}:1 (record 4)']
    path.write_text(json.dumps([good, 7])[:-1])
    with pytest.raises(ValueError, match=r'a.json:1 \(record 2\): a comma or \] is missing'):
        read_funqa(path)


@pytest.mark.parametrize('kind', ['fifo', 'folder', 'device'])
def test_what_is_no_file_is_no_video(tmp_path: Path, kind: str):
    """Opening a FIFO waits for a writer, for ever."""
    place = tmp_path / 'a.mp4'
    if kind == 'fifo':
        os.mkfifo(place)
    elif kind == 'folder':
        place.mkdir()
    else:
        place.symlink_to('/dev/zero')
    with pytest.raises(VideoError, match='is no file'):
        read_frames(Sample(place, '', ''))
    with pytest.raises(ValueError, match='no usable sample .*1 of a broken video(.|\n)*is no file'):
        read_pe_video(write_lines(tmp_path / 'a.jsonl', dict(video='a.mp4', caption='x')), None)


def test_report_tells_the_first_of_each_reason(tmp_path: Path):
    empty_files(tmp_path, 'a.mp4')
    path, report = tmp_path / 'a.jsonl', Report()
    write_lines(path, *[dict(video='a.mp4')] * 9, dict(video='a.mp4', caption='x'))
    read_pe_video(path, None, limits=None, report=report)
    read_pe_video(path, None, limits=None, report=report)
    assert str(report).splitlines()[0] == 'kept 2 of 20 samples; 18 malformed'
    assert len(report.examples) == 3


# Order.


def order_of(feed: ClipFeed, epoch: int, begin: int = 0, count: int = 8) -> list[str]:
    return list(feed.clips(range(epoch * count + begin, (epoch + 1) * count)))


def feed_of(samples: list[Sample], seed: int, read: Callable[[Sample], np.ndarray],
            warnings: list | None = None) -> ClipFeed:
    """Return a feed whose clips are the answers of its samples."""
    maker = SimpleNamespace(read=read, make=lambda sample, frames, seed: sample.answer)
    return ClipFeed(samples, maker, seed, 1, [].append if warnings is None else warnings.append)


def fake_feed(seed: int, broken: Sequence[str] = (), warnings: list | None = None) -> ClipFeed:
    def read(sample: Sample) -> np.ndarray:
        if sample.answer in broken:
            raise VideoError(f'cannot read {sample.video}')
        return np.zeros((2, 4, 4, 3), np.uint8)

    samples = [Sample(Path(f'{i}.mp4'), '', str(i), source=f'a:{i}') for i in range(8)]
    return feed_of(samples, seed, read, warnings)


def test_order_is_that_of_seed_and_epoch():
    first = order_of(fake_feed(1), 0)
    assert sorted(first) == [str(i) for i in range(8)]
    assert order_of(fake_feed(1), 0) == first
    assert order_of(fake_feed(1), 1) != first != order_of(fake_feed(2), 0)


def test_broken_videos_give_way_the_same_in_a_resumed_run():
    whole, warnings = order_of(fake_feed(1), 0), []
    broken = [whole[2], whole[3], whole[7]]
    feed = fake_feed(1, broken, warnings)
    seen = order_of(feed, 0)
    assert seen == [*whole[:2], whole[4], whole[4], *whole[4:7], whole[0]]
    assert len(warnings) == 3 and len(order_of(feed, 1)) == 8 and len(warnings) == 3
    assert warnings[0] == (f'a:{broken[0]}: cannot read {broken[0]}.mp4; '
                           'the next sample takes its place')
    for begin in range(8):
        assert order_of(fake_feed(1, broken), 0, begin) == seen[begin:]


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match='no samples'):
        feed_of([], 1, read_frames)
    with pytest.raises(VideoError, match='not one of 8 videos'):
        fake_feed(1, [str(i) for i in range(8)]).clip(0)


def test_truncated_clip_is_skipped(tmp_path: Path):
    (tmp_path / 'cut.mp4').write_bytes((CLIPS / 'pe_0.mp4').read_bytes()[:900])
    (tmp_path / 'good.mp4').write_bytes((CLIPS / 'pe_0.mp4').read_bytes())
    path = write_lines(tmp_path / 'a.jsonl', dict(video='cut.mp4', caption='cut', duration=5),
                       dict(video='good.mp4', caption='good', duration=5))
    warnings: list[str] = []
    feed = feed_of(read_pe_video(path, None, limits=None), 0, read_frames, warnings)
    assert order_of(feed, 0, count=2) == order_of(feed, 1, count=2) == ['good', 'good']
    assert len(warnings) == 1 and 'a.jsonl:1' in warnings[0] and 'cut.mp4' in warnings[0]


# Bags.


def write_bag(path: Path, plugin: str, stamps_ms: Sequence[int], compressed: bool = False,
              topic: str = '/camera') -> None:
    """Write a bag whose picture k is a gray of 20 * k, recorded 30 ms after its stamp."""
    cv2 = pytest.importorskip('cv2')
    rosbag2, typesys = (pytest.importorskip(f'rosbags.{n}') for n in ('rosbag2', 'typesys'))
    store = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
    header, stamp = store.types['std_msgs/msg/Header'], store.types['builtin_interfaces/msg/Time']
    kind = 'sensor_msgs/msg/CompressedImage' if compressed else 'sensor_msgs/msg/Image'
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin[plugin]) as writer:
        other = writer.add_connection('/clock', 'builtin_interfaces/msg/Time', typestore=store)
        camera = writer.add_connection(topic, kind, typestore=store)
        for index, at in enumerate(stamps_ms):
            at_ns = 1_700_000_000 * 10**9 + at * 10**6
            head = header(stamp(at_ns // 10**9, at_ns % 10**9), 'camera')
            gray = np.full((6, 8, 3), GRAYS * index, np.uint8)
            if compressed:
                message = store.types[kind](head, 'png', cv2.imencode('.png', gray)[1].ravel())
            else:
                message = store.types[kind](head, 6, 8, 'bgr8', 0, 24, gray.ravel())
            writer.write(other, at_ns, store.serialize_cdr(stamp(0, 0), '/'.join(
                ('builtin_interfaces', 'msg', 'Time'))))
            writer.write(camera, at_ns + 30 * 10**6, store.serialize_cdr(message, kind))


@pytest.mark.parametrize('plugin, compressed', [
    ('SQLITE3', False), ('SQLITE3', True), ('MCAP', False)])
def test_bag_with_captions(tmp_path: Path, plugin: str, compressed: bool):
    write_bag(tmp_path / 'bag', plugin, [0, 400, 600, 1300, 4000, 4500, 5000], compressed)
    path = write_lines(tmp_path / 'a.jsonl',
                       dict(bag='bag', topic='/camera', caption='all'),
                       dict(bag='bag', topic='/camera', caption='end', start=3.5, end=5,
                            prompt='What now?'),
                       dict(bag='bag', caption='no topic'),
                       dict(bag='none', topic='/camera', caption='no bag'))
    report = Report()
    whole, part = read_annotations([path], prompt='Say.', report=report)
    assert report.left_out == {'malformed': 1, 'without video': 1}
    assert shown(read_frames(whole)) == [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 6]
    assert shown(read_frames(part)) == [3, 4, 5, 5]
    assert [one.prompt for one in (whole, part)] == ['Say.', 'What now?']
    assert part.topic == '/camera'
    assert read_frames(part, max_pixels=12).shape == (4, 3, 4, 3)


def test_bag_problems_are_video_errors(tmp_path: Path):
    write_bag(tmp_path / 'bag', 'SQLITE3', [0, 500])
    with pytest.raises(VideoError, match='no image topic /left; it has /camera'):
        read_frames(Sample(tmp_path / 'bag', '', '', topic='/left'))
    with pytest.raises(VideoError, match='no pictures on /camera from 9.00 s on'):
        read_frames(Sample(tmp_path / 'bag', '', '', 9.0, topic='/camera'))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bag/bag.db3').write_bytes(b'no database')
    for name in ('empty', 'bag', 'none'):
        with pytest.raises(VideoError, match=f'cannot read the bag .*{name}'):
            read_frames(Sample(tmp_path / name, '', '', topic='/camera'))
