"""
Perception in a process of its own: what the executor `processes` runs its jobs with.

Two threads of one Python share one interpreter, which a small model keeps busy; two processes do
not. The child is a fork: it has the weights without a copy of them, as neither side writes them.
It perceives, and writes the visual lane into shared memory, where decode steps read it as they
read any lane: rows below a published length never change. What else crosses is a JSON header and
the pixels of a step. It has to prove that it computes before it is given work (`PROOFS_S`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
import gc
import math
import os
import signal
import socket
from typing import Any
import warnings
import weakref

import numpy as np
import torch

from sww_ros.streaming.jobs import (
    Carried,
    Carry,
    Decode,
    Frame,
    Input,
    Job,
    Open,
    Opened,
    Perceive,
    Perceived,
    Video,
    Word,
)
from sww_ros.streaming.kv import Lane
from sww_ros.streaming.recall import StepInfo
from sww_ros.streaming.runner import ModelRunner, describe
from sww_ros.streaming.schedule import NarrationBudget, Offline
from sww_ros.wire import Channel

PROOFS_S = (1.0, 3.0, 9.0, 27.0)
"""
How long each child that is made may take to prove that it computes [s], until one does.

A fork copies the locks of native libraries as they are, held by threads that the child does not
have: of MKL's allocator once in some 30 forks of an engine that has just loaded. A child that is
past its first computation has no thread but its own, so none can hold one again. The small model
proves it in 15 ms; one that needs seconds for a pass gets them in a later try.
"""
STAGES = ('started_ns', 'preprocessed_ns', 'vision_ns', 'perceived_ns')
FAR_FD = 1 << 20
_SILENT = NarrationBudget(Offline())
"""The budget of the child's videos, never asked: what is said of them, its parent decides."""


class ChildError(RuntimeError):
    """What went wrong in the perceiving process, in its own words."""


class ChildGone(ChildError):
    """The perceiving process has ended; no later job can be done."""


class ForkingRunner(ModelRunner):
    """
    A runner whose perception jobs run in a forked child.

    The child computes with one thread, whatever its parent does: OpenMP does not outlive a fork.
    It ends when its parent closes it, or is gone.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pid, self._unread = 0, list[int]()
        for limit_s in PROOFS_S:
            self._fork()
            if self._channel.wait_readable(limit_s) and self._channel.receive():
                return
            os.kill(self.pid, signal.SIGKILL)
            self.close()
        raise RuntimeError(f'the perceiving process did not begin to compute in {len(PROOFS_S)} '
                           f'tries of up to {PROOFS_S[-1]:g} s: set overlap to fused or threads')

    def _fork(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._channel = Channel(self._socket, ahead=0)  # File descriptors come between messages.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            _Child(self._checkpoint, self._config, self._scheme).live(theirs)
        theirs.close()

    def close(self) -> None:
        """End the child; a job that it is doing is finished first."""
        self._channel.close()
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0

    def begin(self, jobs: Sequence[Job]) -> Callable[[], list[Input]]:
        """Send the child a step at once; the next may be sent before the reply is read."""
        if isinstance(jobs[0], Perceive):
            self._send_step(jobs[0])
            return partial(self._perceived, jobs[0])
        return super().begin(jobs)

    def _open(self, job: Open) -> Opened:
        video, source = job.video, job.source
        video.work = stream = self._begin(video, source)
        unread = [self._unread.pop() for _ in self._unread[:]]
        reply = self._call(dict(
            open=video.stream, prompt=video.standing, first=video.first, base=video.base,
            recalled=len(video.recalled), source=source.stream if source else None, unread=unread))
        self._follow(reply, stream.lane)
        return Opened(job)

    def _new_video_lane(self, rows: int) -> Lane:
        return super()._new_video_lane(1)  # Which follows the child's.

    def _take_back(self, video: Video, lane: Lane) -> None:
        weakref.finalize(video, self._unread.append, video.stream)  # The child is told.

    def _carry(self, job: Carry) -> list[Input]:
        stream, words = job.video.work, job.words
        narration = stream.narration
        stops = sum(word.token in self._checkpoint.vocabulary.stop for word in words)
        rows = narration.pending + len(words) + stops * len(self._next_turn)
        if stream.owed or len(narration.cache) + rows > self._margin:
            # Only what lies beside the visual lane is shared: the generating side has to do it.
            stream.owed += words
            words = ()
        reply = self._call(dict(carry=job.video.stream, source=job.source.stream, index=job.index,
                                words=words))
        for _ in narration.repeat(words, self._checkpoint.vocabulary):
            pass  # Computed already; what is pending, and where, is to be known here too.
        stream.place_step(places=reply['places'])
        self._follow(reply, stream.lane)
        narration.cache.follow_beside(stream.lane.view(), reply['narrated'])
        stream.keep_patches(job.source.base + job.index)
        return [Carried(job)]

    def _perceive(self, job: Perceive, riding: Decode | None = None) -> list[Input]:
        self._send_step(job)
        return self._perceived(job)

    def _send_step(self, job: Perceive) -> None:
        stream, also = job.video.work, job.also
        if not stream.size[0]:
            self._choose_size(stream, job.frames[0])
        shapes = [frame.pixels.shape for frame in job.frames]
        pixels = b''.join(np.ascontiguousarray(frame.pixels).data for frame in job.frames)
        self._send(dict(perceive=job.video.stream, also=also.stream if also else None,
                        shapes=shapes, last=job.last), pixels)

    def _perceived(self, job: Perceive) -> list[Input]:
        reply, stream = self._receive(), job.video.work
        streams = [stream, job.also.work] if job.also else [stream]
        patches = []
        if self._config.record_trace:
            # Made again: replies stay so small that neither side can wait for the other to read.
            pixels = [frame.pixels for frame in job.frames]
            patches = [self._checkpoint.perception.patches(pixels, *stream.size)]
        for each in streams:
            each.place_step(job.last, reply['places'])
            each.patches += patches
        stream.kept.add(None, patches[0] if patches else None)
        self._follow(reply, *[each.lane for each in streams])
        return [Perceived(job, *(reply[name] for name in (*STAGES, 'tokens', 'changed')))]

    def _call(self, header: dict) -> dict:
        """Have the child do something, and wait for its reply."""
        self._send(header)
        return self._receive()

    def _send(self, header: dict, pixels: bytes = b'') -> None:
        """Have the child do something."""
        try:
            self._channel.send(header, pixels)
        except OSError:
            raise ChildGone('the perceiving process has ended') from None

    def _receive(self) -> dict:
        """Wait for its reply to the oldest thing that it was sent."""
        try:
            message = self._channel.receive()
        except OSError:
            message = None
        if message is None:
            raise ChildGone('the perceiving process has ended')
        reply, _ = message
        if 'error' in reply:
            raise ChildError(reply['error'])
        return reply

    def _follow(self, reply: dict, *lanes: Lane) -> None:
        """Take over the buffers and the lengths that the child has published."""
        for lane, (rows, shape) in zip(lanes, reply['lanes'], strict=True):
            if shape:
                _, (fd,), _, _ = socket.recv_fds(self._socket, 1, 1)
                buffer = _mapped(fd, shape, self._checkpoint.decoder.dtype)
                lane.follow(buffer, self._margin)
            lane.publish(rows)


class _Child(ModelRunner):
    """The perceiving side, in the forked process."""

    def live(self, sock: socket.socket) -> None:
        """Serve until the other end is gone; never returns."""
        code = 1
        try:
            self._serve(sock)
            code = 0
        finally:
            os._exit(code)  # Nothing of the parent's is ours to tidy up.

    def _serve(self, sock: socket.socket) -> None:
        gc.freeze()
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The parent's other connections must end when it does.
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, FAR_FD)
        self._socket, self._channel = sock, Channel(sock)
        self._videos: dict[int, Video] = {}
        self._recalled: dict[int, Video] = {}
        self._lanes: dict[int, Lane] = {}
        self._shared: dict[int, int] = {}
        self._unsent: set[int] = set()
        self._prove()
        while (message := self._channel.receive()) is not None:
            try:
                self._obey(*message)
            except OSError:
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
                self._channel.send({'error': describe(error)})

    def _prove(self) -> None:
        """Do a small piece of all that will be done, and say so."""
        unit = self._checkpoint.perception.settings.unit
        frame = Frame(np.zeros((2 * unit, 2 * unit, 3), np.uint8))
        video = Video(-1, 'x', _SILENT)
        self._open(Open(video))
        video.work.size, video.work.grid = (2 * unit, 2 * unit), (2, 2)
        self._perceive(Perceive(video, (frame,), False))
        self._free.append(self._lanes.pop(video.stream))
        self._channel.send({'computes': True})

    def _obey(self, header: dict, pixels: bytearray) -> None:
        if 'open' in header:
            self._begin_stream(header)
        elif 'carry' in header:
            self._carry_step(header)
        else:
            self._perceive_step(header, pixels)

    def _begin_stream(self, header: dict) -> None:
        source = self._videos.get(header['source'])
        video = Video(0, header['prompt'], _SILENT, header['open'], header['base'],
                      header['first'], recalled=(StepInfo(0, 0),) * header['recalled'])
        if video.recalled:
            # One is made at a time.
            self._recalled = {video.stream: video}
        else:
            # Of a video two streams at most are perceived, and of those before it none is.
            self._videos = {each.stream: each for each in (source, video) if each}
        self._free += [self._lanes.pop(number) for number in header['unread']
                       if number in self._lanes]
        self._open(Open(video, source))
        self._reply({}, video.work.lane)

    def _carry_step(self, header: dict) -> None:
        videos = self._videos | self._recalled
        video, source = videos[header['carry']], videos[header['source']]
        words = tuple(Word(*word) for word in header['words'])
        self._carry(Carry(video, source, header['index'], words))
        lane, narration = video.work.lane, video.work.narration.cache
        narration.beside(lane.view(), 0)  # It stays behind when the lane has to grow.
        self._reply(dict(narrated=len(narration), places=video.work.places), lane)
        if header['index'] + 1 == len(video.recalled):
            self._recalled.clear()  # It has all that it is to have; its reader has the rows mapped.

    def _perceive_step(self, header: dict, pixels: bytearray) -> None:
        frames, start = [], 0
        for shape in header['shapes']:
            size = math.prod(shape)
            frame = np.frombuffer(pixels, np.uint8, size, start).reshape(shape)
            frames.append(Frame(frame))
            start += size
        video, also = self._videos[header['perceive']], self._videos.get(header['also'])
        # What was relieved by this one is not perceived any more.
        self._videos = {number: each for number, each in self._videos.items()
                        if number >= video.stream}
        [done] = self._perceive(Perceive(video, tuple(frames), header['last'], also))
        streams = [each.work for each in (video, also) if each]
        for stream in streams:
            stream.patches.clear()
        self._reply({name: getattr(done, name) for name in (*STAGES, 'tokens', 'changed')}
                    | dict(places=video.work.places), *[stream.lane for stream in streams])

    def _reply(self, header: dict, *lanes: Lane) -> None:
        """Tell what has been published, and hand over the buffers that are new to a stream."""
        buffers = [_buffer(lane) for lane in lanes]
        new = [buffer.data_ptr() in self._unsent for buffer in buffers]
        self._unsent.difference_update(buffer.data_ptr() for buffer in buffers)
        header['lanes'] = [(len(lane), tuple(buffer.shape) if is_new else None)
                           for lane, buffer, is_new in zip(lanes, buffers, new)]
        self._channel.send(header)
        for buffer, is_new in zip(buffers, new):
            if is_new:
                socket.send_fds(self._socket, [b'.'], [self._shared[buffer.data_ptr()]])

    def _video_lane(self, rows: int, relieves: bool) -> Lane:
        lane = super()._video_lane(rows, relieves)
        self._unsent.add(_buffer(lane).data_ptr())
        return lane

    def _new_video_lane(self, rows: int) -> Lane:
        return self._checkpoint.decoder.new_lane(rows, self._allocate, self._margin)

    def _take_back(self, video: Video, lane: Lane) -> None:
        self._lanes[video.stream] = lane  # The parent says when nobody reads it.

    def _allocate(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor in shared memory, whose descriptor is there for as long as it is."""
        fd = os.memfd_create('visual lane')
        os.ftruncate(fd, math.prod(shape) * dtype.itemsize)
        tensor = _map(fd, shape, dtype)
        self._shared[tensor.data_ptr()] = fd
        self._unsent.add(tensor.data_ptr())
        weakref.finalize(tensor, self._close_buffer, tensor.data_ptr())
        return tensor

    def _close_buffer(self, pointer: int) -> None:
        os.close(self._shared.pop(pointer))
        self._unsent.discard(pointer)


def _buffer(lane: Lane) -> torch.Tensor:
    view = lane.view()
    return view.kv if view.whole is None else view.whole


def _map(fd: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_file(f'/proc/self/fd/{fd}', shared=True, size=math.prod(shape),
                           dtype=dtype).view(*shape)


def _mapped(fd: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Map a descriptor that was received, and close it: the tensor keeps the memory."""
    try:
        return _map(fd, shape, dtype)
    finally:
        os.close(fd)
