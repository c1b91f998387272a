"""The decode step against transformers' text model, for every way in which rows can be given."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
import math
import random

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sww_ros.evaluation.random_model import SMALL, random_model
from sww_ros.models.qwen2_5_vl import FAMILY
from sww_ros.streaming import decoder as decoder_module
from sww_ros.streaming.attention import attend, attend_plainly
from sww_ros.streaming.decoder import Chunk, Decoder, Matrix
from sww_ros.streaming.kv import Lane, SideLane

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass
class Played:
    """A decoder, and all rows that it was given, to be computed again by the stock model."""

    model: torch.nn.Module
    decoder: Decoder
    embeds: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    sees: list[list[int]] = field(default_factory=list)
    of_lane: dict[Lane, list[int]] = field(default_factory=dict)
    told: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def rows(self, lane: Lane, count: int, seen: tuple[Lane, int] | None = None,
             ahead: int = 0) -> Chunk:
        """Return a chunk of random rows that sees so many rows of another lane."""
        ids = [self.chance.randrange(256) for _ in range(count)]
        positions = torch.tensor([[self.chance.randrange(300) for _ in range(count)]
                                  for _ in range(3)])
        context = None
        if seen is not None:
            view = seen[0].ahead(ahead) if ahead else seen[0].view()
            context = view._replace(length=seen[1])
        return Chunk(lane, self.decoder.embed(ids), positions, context, predict=True)

    def step(self, *chunks: tuple) -> None:
        """Take a step over chunks, each as the arguments of `rows`."""
        made = [self.rows(*chunk) for chunk in chunks]
        first = len(self.sees)
        for chunk in made:
            own = self.of_lane.setdefault(chunk.lane, [])
            own += range(first, first + chunk.rows)
            first = own[-1] + 1
        for chunk, (_, count, *context) in zip(made, chunks):
            seen, length = context[0] if context else (None, 0)
            before, own = self.of_lane.get(seen, [])[:length], self.of_lane[chunk.lane]
            self.sees += [before + own[:len(own) - count + i + 1] for i in range(count)]
            self.embeds.append(chunk.embeds)
            self.positions.append(chunk.positions)
        self.told += [(self.of_lane[chunk.lane][-1], logits)
                      for chunk, logits in zip(made, self.decoder.step(made))]

    @torch.inference_mode()
    def expected(self) -> torch.Tensor:
        """Return the stock model's logits of the rows that were told, by one masked pass."""
        # Rows of one step may see rows that stand after them, so the mask alone decides.
        mask = torch.zeros(len(self.sees), len(self.sees), dtype=torch.bool)
        for row, seen in enumerate(self.sees):
            mask[row, seen] = True
        hidden = self.model.model.language_model(
            inputs_embeds=torch.cat(self.embeds)[None],
            position_ids=torch.cat(self.positions, 1)[:, None], attention_mask=mask[None, None],
            use_cache=False).last_hidden_state[0]
        return self.model.lm_head(hidden[[row for row, _ in self.told]])

    def error(self) -> float:
        return float((torch.stack([logits for _, logits in self.told])
                      - self.expected()).abs().max())


def start(dtype: torch.dtype = torch.float64, seed: int = 3) -> Played:
    model, _ = random_model(SMALL, seed, dtype)
    taken = copy.deepcopy(model)
    return Played(model, FAMILY.decoder(taken))


@pytest.fixture(params=[torch.float32, torch.float64], ids=['fp32', 'fp64'])
def played(request) -> Played:
    return start(request.param)


def check(played: Played) -> None:
    assert played.error() < TOLERANCE[played.decoder.dtype]


def lanes(played: Played, count: int) -> list[Lane]:
    return [played.decoder.new_lane(4) for _ in range(count)]


def filled(played: Played, rows: int) -> Lane:
    lane = played.decoder.new_lane(8)
    played.step((lane, rows))
    return lane


def test_a_lane_alone_row_by_row_and_in_chunks(played):
    lane = filled(played, 9)
    for count in (1, 1, 5, 1, 30, 1):
        played.step((lane, count))
    check(played)


def test_one_row_and_several_over_a_context(played):
    video, (text,) = filled(played, 20), lanes(played, 1)
    for count in (7, 1, 1, 3, 1):
        played.step((text, count, (video, 20)))
    check(played)


def test_nine_lanes_of_unlike_lengths_that_come_and_go(played):
    video, texts = filled(played, 20), lanes(played, 9)
    for i, text in enumerate(texts):
        played.step((text, 1 + 3 * i, (video, 20)))
    for live in (texts, texts[1:], texts, texts[:3] + texts[5:], texts[::-1], texts[2:3], texts):
        for _ in range(3):
            played.step(*((text, 1, (video, 20)) for text in live))
    check(played)


def test_lanes_outgrow_the_storage_they_share(played):
    video, texts = filled(played, 5), lanes(played, 2)
    for _ in range(150):
        played.step(*((text, 1, (video, 5)) for text in texts))
    check(played)


def test_one_long_lane_beside_short_ones(played):
    video, (long, *short) = filled(played, 5), lanes(played, 4)
    played.step((long, 200, (video, 5)))
    for _ in range(3):
        played.step((long, 1, (video, 5)), *((text, 1, (video, 5)) for text in short))
    check(played)


def test_several_contexts_of_several_lengths_in_one_call(played):
    first, second, texts = filled(played, 30), filled(played, 12), lanes(played, 6)
    for _ in range(3):
        played.step((texts[0], 1, (first, 10)), (texts[1], 1, (first, 30)),
                    (texts[2], 4, (first, 20)), (texts[3], 1, (second, 12)),
                    (texts[4], 1), (texts[5], 2, (first, 30)))
    check(played)


def test_an_empty_context_is_none(played):
    empty, text = lanes(played, 2)
    played.step((text, 3, (empty, 0)))
    check(played)


def test_prefill_and_decoding_in_one_call(played):
    video, texts = filled(played, 16), lanes(played, 3)
    for count in (8, 8, 40):
        seen = (video, len(video))
        played.step((video, count), *((text, 1, seen) for text in texts))
    check(played)


def test_rows_ride_on_the_pass_that_prefills_what_they_see(played):
    video, (text, other, head) = filled(played, 16), lanes(played, 3)
    for count in (8, 8, 100):
        seen = (video, len(video) + count)
        played.step((text, 1, seen, count), (video, count), (other, 1, seen, count),
                    (head, 5, seen, count))
    check(played)


def test_a_ride_gives_the_tokens_of_two_calls():
    told = []
    for together in (True, False):
        played = start()
        video, (text,) = filled(played, 16), lanes(played, 1)
        tokens = []
        for count in (8, 8, 8):
            seen = (video, len(video) + count)
            if together:
                played.step((video, count), (text, 1, seen, count))
            else:
                played.step((video, count))
                played.step((text, 1, seen))
            tokens.append(played.told[-1][1])
        told.append(torch.stack(tokens))
    assert torch.equal(told[0].argmax(-1), told[1].argmax(-1))
    assert (told[0] - told[1]).abs().max() < 1e-12


def test_a_text_lane_may_be_what_another_rides_on(played):
    video, (text, fork, third) = filled(played, 16), lanes(played, 3)
    played.step(*((lane, 3, (video, 16)) for lane in (text, fork)))
    played.step(*((lane, 1, (video, 16)) for lane in (text, fork)))
    played.step((text, 1, (video, 16)), (fork, 1, (video, 16)), (third, 1, (text, 5), 1))
    check(played)


def test_a_context_ahead_that_nothing_appends_to_is_refused():
    played = start()
    video, (text,) = filled(played, 16), lanes(played, 1)
    with pytest.raises(ValueError, match='24 rows is ahead of its lane'):
        played.decoder.step([played.rows(text, 1, (video, 24), 8)])
    with pytest.raises(ValueError, match='24 rows is ahead of its lane'):
        played.decoder.step([played.rows(text, 1, (video, 24), 8), played.rows(video, 7)])
    assert (len(video), len(text)) == (16, 0)


def test_a_lane_in_memory_of_its_own_is_written_there(played):
    decoder, made = played.decoder, []

    def allocate(shape, dtype):
        made.append(torch.zeros(*shape, dtype=dtype))
        return made[-1]

    video, fixed = (decoder.new_lane(24, allocate) for _ in range(2))
    others = lanes(played, 2)
    for count in (16, 4, 1, 1):
        played.step((video, count))
    for _ in range(3):
        played.step((fixed, 1, (video, 22)), *((text, 1, (video, 22)) for text in others))
    check(played)
    assert len(made) == 2, 'neither is pooled with others'
    assert (made[0][:, :, :, :22] != 0).all()
    assert (made[0][:, :, :, 22:] == 0).all()


def with_side(played: Played, margin: int) -> tuple[Lane, SideLane]:
    """Return a video with room beside it, and a text for that room."""
    video, side = played.decoder.new_lane(8, margin=margin), played.decoder.new_side_lane(4)
    played.step((video, 20))
    return video, side


def lies_beside(side: SideLane, video: Lane) -> bool:
    mine, whole = side.view().kv, video.view().whole
    return mine.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_a_side_lane_is_read_with_its_context_while_both_grow(played):
    video, side = with_side(played, 60)
    for count in (7, 1, 1, 3, 1):
        played.step((side, count, (video, 20)))
    for _ in range(6):
        played.step((video, 9))
        for seen in (20, 25, len(video)):
            played.step((side, 1, (video, seen)))
            assert lies_beside(side, video)
    played.step((side, 4, (video, 30)))
    check(played)


def test_a_side_lane_rides_on_its_contexts_pass_alone_and_beside_answers(played):
    video, side = with_side(played, 90)
    answers = lanes(played, 3)
    for i, answer in enumerate(answers):
        played.step((answer, 2 + 9 * i, (video, 20)))
    for count in (5, 1, 1, 4, 1):
        before = len(video)
        played.step((video, 9), (side, count, (video, before + 9), 9))
        played.step((video, 9), (side, count, (video, before + 9)))
        played.step((video, 9), (side, count, (video, before + 27), 9),
                    *((answer, 1, (video, before)) for answer in answers))
        played.step((video, 9), (answers[0], 2, (video, before + 36), 9),
                    (side, 1, (video, before + 36), 9))
        played.step((side, 1, (video, before)), *((each, 1, (video, 20)) for each in answers))
        assert lies_beside(side, video)
    check(played)


def test_a_side_lane_that_finds_no_room_lies_by_itself(played):
    video, side = with_side(played, 6)
    for seen in (20, 20, 20, 11):
        played.step((side, 2, (video, seen)))
    assert not lies_beside(side, video)
    played.step((side, 3, (video, 20)))
    played.step((video, 9), (side, 1, (video, 29), 9))
    played.step(*((lane, 1, (video, 20)) for lane in (side, *lanes(played, 2))))
    bare, other = filled(played, 12), played.decoder.new_side_lane(1)
    played.step((other, 2, (bare, 12)))
    played.step((other, 1, (bare, 12)))
    check(played)


def test_a_side_lane_that_sees_nothing_lies_by_itself(played):
    video, side = with_side(played, 60)
    played.step((side, 2, (video, 20)))
    assert lies_beside(side, video)
    played.step((side, 1))
    assert not lies_beside(side, video)
    played.step((side, 1, (video, 20)))
    assert lies_beside(side, video)
    check(played)


def test_narration_beside_its_video_calls_the_operators_of_one_lane_alone():
    played = start(torch.float32)
    alone, (video, side) = filled(played, 40), with_side(played, 60)
    played.step((side, 8, (video, 20)))

    def calls(*made: Chunk) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            played.decoder.step(made)
        return sum(event.count for event in found.key_averages())

    one = calls(played.rows(alone, 1))
    assert calls(played.rows(side, 1, (video, 20))) <= one + 10
    step = calls(played.rows(alone, 10))
    riding = calls(played.rows(video, 9), played.rows(side, 1, (video, 29), 9))
    assert riding <= step + 70, 'a copy of two slices more a layer, and the mask'


def test_answers_together_give_the_tokens_of_one_at_a_time():
    played = start(torch.float32)
    decoder, video = played.decoder, filled(played, 40)

    def speak(texts: list[Lane], heads: list[int]) -> list[list[int]]:
        said = [[head] for head in heads]
        for step in range(40):
            places = torch.full((3, 1), 40 + step)
            logits = decoder.step([
                Chunk(text, decoder.embed(ids[-1:]), places, video.view(), predict=True)
                for text, ids in zip(texts, said)])
            for ids, row in zip(said, logits):
                ids.append(int(row.argmax()))
        return said

    heads = list(range(60, 69))
    alone = [speak(lanes(played, 1), [head])[0] for head in heads]
    assert speak(lanes(played, 9), heads) == alone


def test_many_lanes_call_hardly_more_operators_than_one():
    played = start(torch.float32)
    video = filled(played, 40)

    def calls(count: int) -> int:
        texts = lanes(played, count)
        for i, text in enumerate(texts):
            played.step((text, 2 + i, (video, 40)))
        played.step(*((text, 1, (video, 40)) for text in texts))
        chunks = [played.rows(text, 1, (video, 40)) for text in texts]
        with profile(activities=[ProfilerActivity.CPU]) as found:
            played.decoder.step(chunks)
        return sum(event.count for event in found.key_averages())

    one = calls(1)
    assert calls(9) < 1.7 * one
    # Six layers of the built-in model once took 1,622.
    assert one / played.decoder.layer_count < 180


def test_bf16_is_as_near_to_the_truth_as_the_stock_model_in_bf16():
    """The same bf16 weights, computed in fp64, are the truth."""
    ours, theirs = 0.0, 0.0
    for seed in range(6):
        played = start(torch.bfloat16, seed)
        video, texts = filled(played, 40), lanes(played, 5)
        for count in (6, 1, 1, 1, 1):
            played.step(*((text, count, (video, 40)) for text in texts))
        told = torch.stack([logits for _, logits in played.told]).double()
        stock = played.expected().double()
        played.model.double()
        played.embeds = [part.double() for part in played.embeds]
        truth = played.expected()
        ours += float((told - truth).abs().mean())
        theirs += float((stock - truth).abs().mean())
    assert ours <= 1.1 * theirs


def test_the_plain_way_to_attend_equals_the_kernel():
    torch.manual_seed(0)
    q, keys, values = (torch.randn(3, 2, n, 12, dtype=torch.float64) for n in (4, 30, 30))
    mask = torch.zeros(3, 1, 1, 30, dtype=torch.float64)
    mask[1, ..., 20:] = -torch.inf
    for given in (None, mask):
        for one, other in zip(attend(q, keys, values, given),
                              attend_plainly(q, keys, values, given)):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(40, 30), (600, 500)])
@pytest.mark.parametrize('rows', [1, 9, 65, 1000])
def test_a_matrix_multiplies_alike_packed_or_not(rows, shape, dtype):
    torch.manual_seed(0)
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    x, base = torch.randn(rows, shape[1]).to(dtype), torch.randn(rows, shape[0]).to(dtype)
    product = x.double() @ weight.double().t()
    close = dict(rtol=2e-2, atol=0.3) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(Matrix(weight, bias)(x).double(), product + bias, **close)
    torch.testing.assert_close(Matrix(weight)(x).double(), product, **close)
    torch.testing.assert_close(Matrix(weight).added_to(base, x).double(), product + base, **close)


def test_a_step_with_every_matrix_packed(monkeypatch):
    monkeypatch.setattr(decoder_module, '_LARGE', 0)
    played = start(torch.float32)
    video, texts = filled(played, 20), lanes(played, 3)
    for _ in range(2):
        played.step((video, 8), *((text, 1, (video, 20)) for text in texts))
    check(played)


def test_without_onednn_matrices_are_multiplied_plainly(monkeypatch):
    monkeypatch.setattr(decoder_module, '_packed_from', lambda *_: math.inf)
    played = start(torch.float32)
    video, texts = filled(played, 20), lanes(played, 3)
    played.step(*((text, 1, (video, 20)) for text in texts))
    check(played)


def test_what_is_not_supported_is_named():
    model, _ = random_model(SMALL, 0)
    model.model.language_model.config.hidden_act = 'gelu'
    with pytest.raises(ValueError, match="activation 'gelu' is not supported"):
        FAMILY.decoder(model)
