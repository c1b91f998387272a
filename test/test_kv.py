"""Lanes: append-only, published in one piece, safe to read while they grow."""

import threading

import pytest
import torch

from sww_ros.streaming.kv import Lane, pooled


def append(lane: Lane, values) -> None:
    target = lane.reserve(len(values))
    rows = slice(target.length - len(values), target.length)
    for buffer in (target.keys, target.values):
        buffer[:, :, rows] = torch.tensor(values, dtype=buffer.dtype)[None, None, :, None]
    lane.publish(target.length)


def test_rows_are_seen_only_once_published():
    lane = Lane(1, 1, 2, 4, torch.float32)
    lane.reserve(3)
    assert lane.view().length == len(lane) == 0
    append(lane, [1, 2])
    assert lane.view().keys[0, 0, :2, 0].tolist() == [1, 2]


def test_growing_keeps_rows_and_older_views():
    lane = Lane(2, 1, 2, 2, torch.float32)
    append(lane, [1, 2])
    before = lane.view()
    append(lane, [3, 4, 5])
    assert lane.view().keys[1, 0, :5, 1].tolist() == [1, 2, 3, 4, 5]
    assert before.length == 2
    assert before.keys[1, 0, :2, 1].tolist() == [1, 2]


def test_a_lane_that_grew_in_a_forward_pass_is_written_outside_of_one():
    """Found by the endurance run: streams that take turns in lanes failed at a hand-over."""
    lane = Lane(1, 1, 2, 1, torch.float32, margin=4)
    with torch.inference_mode():
        lane.reserve(9)
    lane.view().whole[:, :, :, :4] = 1.0


def test_publishing_what_is_not_there_is_refused():
    lane = Lane(1, 1, 2, 2, torch.float32)
    with pytest.raises(ValueError, match='cannot publish 5 rows'):
        lane.publish(5)
    append(lane, [1])
    with pytest.raises(ValueError, match='1 are published'):
        lane.publish(0)


def test_a_reader_never_sees_a_torn_or_unwritten_row():
    lane = Lane(3, 2, 4, 1, torch.float64)
    done = threading.Event()
    wrong = []

    def read():
        while not done.is_set():
            view = lane.view()
            length = view.length
            expected = torch.arange(length, dtype=torch.float64)
            for buffer in (view.keys, view.values):
                if not torch.equal(buffer[:, :, :length],
                                   expected[None, None, :, None].expand(3, 2, length, 4)):
                    wrong.append(length)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for start in range(0, 400, 4):
        append(lane, list(range(start, start + 4)))
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_ahead_counts_rows_in_the_buffer_they_will_be_written_to():
    lane = Lane(1, 1, 2, 1, torch.float32)
    append(lane, [1])
    view = lane.ahead(3)
    assert (view.length, len(lane)) == (4, 1)
    append(lane, [2, 3, 4])
    assert view.keys[0, 0, :4, 0].tolist() == [1, 2, 3, 4]


def test_a_lane_lives_in_the_memory_it_is_given_and_moves_there():
    made = []

    def allocate(shape, dtype):
        made.append(torch.zeros(*shape, dtype=dtype))
        return made[-1]

    lane = Lane(1, 1, 2, 3, torch.float32, allocate=allocate)
    append(lane, [1, 2])
    assert made[0][1, 0, 0, :, 0].tolist() == [1, 2, 0]
    append(lane, [3, 4])
    assert [buffer.shape[3] for buffer in made] == [3, 6]
    assert made[1][1, 0, 0, :, 0].tolist() == [1, 2, 3, 4, 0, 0]


def test_a_follower_reads_what_another_lane_has_published():
    lane, follower = (Lane(1, 1, 2, 2, torch.float32) for _ in range(2))
    append(lane, [1, 2, 3])
    follower.follow(lane.view().kv)
    assert len(follower) == 0
    follower.publish(3)
    assert follower.view().keys[0, 0, :3, 0].tolist() == [1, 2, 3]


def test_pooled_lanes_share_a_storage_and_older_views_stay():
    lanes = [Lane(1, 1, 2, 4, torch.float32) for _ in range(3)]
    for i, lane in enumerate(lanes):
        append(lane, [10 * i, 10 * i + 1])
    before = [lane.view() for lane in lanes]
    pool = pooled(lanes)
    for i, lane in enumerate(lanes):
        append(lane, [10 * i + 2])
        assert pool[0, 0, i, 0, :3, 0].tolist() == [10 * i, 10 * i + 1, 10 * i + 2]
        assert before[i].keys[0, 0, :2, 0].tolist() == [10 * i, 10 * i + 1]


def test_pooled_lanes_that_are_neighbours_stay_where_they_are():
    lanes = [Lane(1, 1, 2, 4, torch.float32) for _ in range(4)]
    whole = pooled(lanes)
    for some in (lanes[1:], lanes[:2], lanes):
        assert pooled(some).data_ptr() == whole[:, :, lanes.index(some[0])].data_ptr()
    assert pooled([lanes[0], lanes[2]]).data_ptr() != whole.data_ptr(), 'a gap between them'
    before = lanes[1].view().kv
    for _ in range(70):
        append(lanes[1], [1])
    assert lanes[1].view().kv is not before, 'a lane that outgrows its place moves out'
    assert pooled(lanes[1:3])[0, 0, 0, 0, :70, 0].tolist() == [1] * 70
