"""The narrator: a lifecycle node that watches image topics, speaks, and answers questions."""

from __future__ import annotations

from collections.abc import Callable
import functools
import sys
import threading

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from sww_interfaces.msg import TextChunk
from sww_interfaces.srv import SetPrompt
from sww_ros import nodes
from sww_ros.engine.address import check_engine, is_address, token_of
from sww_ros.engine.client import ENGINE, EngineClient, EngineError
from sww_ros.engine.fallback import Fallback
from sww_ros.engine.process import EngineHost, Launcher
from sww_ros.engine.shared import SharedHost
from sww_ros.engine.supervision import Limits
from sww_ros.frames import CameraFrame
from sww_ros.node import declare, join_override, read, run
from sww_ros.nodes.camera import Annotator, Camera
from sww_ros.nodes.diagnostics import Alarm, Health, judge_camera, resident_bytes, statuses
from sww_ros.nodes.lifecycle import SERVICE_QOS, ManagedNode, Responder, logged
from sww_ros.nodes.questions import MAX_WAITERS, Questions
from sww_ros.nodes.reporting import Reporter, TextPublisher

NAME = 'narrator'
SHORT_CALLBACKS = 6
"""Threads for the callbacks that never wait; those that may have theirs beside."""

HEALTH_S = 1.0
"""How often the frames are judged where no diagnostics are published."""

CLOCK_JUMP = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-0.5),
                           on_clock_change=False)


def answered(serve: Callable) -> Callable:
    """Decorate what serves a request: the message that it returns, or why not, is the response."""
    @functools.wraps(serve)
    def respond(self: CameraPart, request, response):
        try:
            response.message, response.success = serve(self, request), True
        except (ValueError, EngineError) as error:
            response.message = str(error)
        return response
    return respond


class CameraPart:
    """
    What a narrator does for one camera: frames, session, text, questions and services.

    `trouble` is what is wrong with its engine, in words; empty where nothing is.
    """

    def __init__(self, node: Narrator, name: str, group: CallbackGroup, responder: Responder,
                 waiters: threading.BoundedSemaphore) -> None:
        """
        Make its topics and services.

        :param name: what they stand under; empty: there is one camera only
        :param group: that of the services
        """
        self._node, self.trouble = node, ''
        self.full_name = '/'.join(filter(None, [node.get_fully_qualified_name().lstrip('/'), name]))
        self._log = log = node.get_logger().get_child(name) if name else node.get_logger()
        self.engine: EngineClient | None = None
        self._watched_before = False
        prefix, image = (f'~/{name}/', f'{name}/image') if name else ('~/', 'image')
        self._camera = Camera(node, log, image, on_frame=self._feed, on_drop=self._drop,
                              on_restart=self._reset_engine)
        self._questions = Questions(node, self._active_engine, responder, prefix, log, waiters)
        annotator = Annotator(node, prefix, self._camera,
                              node.get_parameter('annotation_rate').value)
        self._reporter = Reporter(log, self._camera, TextPublisher(node, prefix, self._camera),
                                  self._questions.answers, annotator.subtitle)
        for kind, service, serve in ((SetPrompt, 'set_prompt', self._serve_prompt),
                                     (Trigger, 'reset', self._serve_reset),
                                     (SetBool, 'pause', self._serve_pause)):
            responder.attend(node.create_service(
                kind, prefix + service, serve, qos_profile=SERVICE_QOS, callback_group=group))
        self._alarm = Alarm(log)

    def close(self) -> None:
        """Stop taking questions; called before the node is destroyed."""
        self._questions.close()

    # Transitions.

    def make_engine(self, values: dict, session: str, host: Launcher | None) -> None:
        """
        Make the client of its session, by the parameters' values.

        :param host: has it share a process with other cameras, or other narrators
        :raises ValueError: for a value that no session can have
        """
        limits = Limits(silence=values['silence_timeout'], work=values['work_timeout'])
        self.engine = EngineClient(
            values['model'], nodes.session_config(values), session=session, limits=limits,
            host=host, restart=values['restart_engine'], ask_again=values['ask_again'],
            on_event=self._reporter.take, on_lost=self._engine_lost,
            on_ready=self._engine_ready, on_line=self._log.debug)

    def begin(self) -> None:
        """Begin to count: the engine runs."""
        self._reporter.begin()
        self._watched_before = False

    def watch(self, transport: str) -> bool:
        """Watch and speak; False where the engine is gone."""
        if (engine := self.engine) is None:
            return False
        if self._watched_before:
            engine.reset()  # What was seen before the break is of no use now.
        engine.pause(False)
        self._watched_before = True
        self._camera.subscribe(transport, engine.info['frame_rate'])
        return True

    def rest(self) -> None:
        """Leave the topic, and end what is being answered."""
        self._camera.unsubscribe()
        if (engine := self.engine) is not None:
            engine.pause(True)
            self._questions.end_all(engine, TextChunk.FINISH_DEACTIVATED)

    def stop(self) -> None:
        """Leave the topic, and end the engine."""
        self._camera.unsubscribe()
        self.free_engine()

    def free_engine(self) -> None:
        """End the session; its process with it, or with the last that shares that."""
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()

    # What the engine and the camera tell.

    def _engine_ready(self, info: dict) -> None:
        self.trouble = ''
        self._camera.begin_anew()
        self._log.info(
            f'the model {info["model"]} runs on {info["device"]} ({info["dtype"]}, '
            f'{info["position_encoding"]}, wait-{info["wait_k"]}, {info["frame_rate"]:g} frames '
            f'per second); a step takes about {info.get("step_seconds", 0):.2g} s here, a token '
            f'{info.get("token_seconds", 0):.2g} s')
        if info.get('relay'):
            self._log.info(info['relay'])
        if info.get('overlap_why'):
            self._log.info(f'overlap {info["overlap"]}: {info["overlap_why"]}')
        for kind in ('mismatch', 'warning'):
            if info.get(kind):
                self._log.warning(info[kind])

    def _engine_lost(self, report: str) -> None:
        self.trouble = report.partition('\n')[0]
        self._log.error(report)

    def _feed(self, frame: CameraFrame) -> None:
        if (engine := self.engine) is not None:
            engine.feed(frame)

    def _drop(self, reason: str) -> None:
        self._reporter.drop(reason)

    def begin_anew(self, reason: str) -> None:
        """Forget what was seen and said."""
        self._camera.begin_anew()
        self._reset_engine(reason)

    def _reset_engine(self, reason: str) -> None:
        if self._node.active and (engine := self.engine) is not None:
            self._log.warning(f'{reason}: the stream is reset')
            engine.reset()

    def _active_engine(self) -> EngineClient:
        engine = self.engine
        if engine is None or not self._node.active:
            raise EngineError(f'the narrator is {self._node.state}: activate it first')
        return engine

    # Services and diagnostics.

    @answered
    def _serve_prompt(self, request: SetPrompt.Request) -> str:
        engine = self._active_engine()
        prompt = (request.prompt or self._node.get_parameter('prompt').value
                  or engine.info['default_prompt'])
        engine.set_prompt(prompt)
        return f'the stream begins anew with: {prompt}'

    @answered
    def _serve_reset(self, request: Trigger.Request) -> str:
        self._active_engine()
        self.begin_anew('reset requested')
        return ''

    @answered
    def _serve_pause(self, request: SetBool.Request) -> str:
        self._active_engine().pause(request.data)
        self._camera.paused = request.data
        return 'paused' if request.data else 'watching'

    def health(self) -> Health:
        """Return how it goes, what is wrong with the frames being logged too."""
        engine = self.engine
        health = Health(
            state=self._node.state, trouble=self.trouble,
            camera_timeout=self._node.get_parameter('camera_timeout').value,
            open_questions=len(self._questions.answers))
        if engine is not None:
            health.info, health.restarts = engine.info, engine.restarts
            health.engine_memory, health.doing = resident_bytes(engine.pid), engine.doing
        self._reporter.health(health)
        self._alarm.take(judge_camera(health))
        return health


class Narrator(ManagedNode):
    """
    Configure loads the model, activate watches and speaks, cleanup frees the model.

    :param session: 'module:callable' that opens the engine's session; or the engine of the
        sessions of several cameras or narrators
    """

    def __init__(self, session: str = '') -> None:
        super().__init__(NAME)
        join_override(self, 'cameras')
        values = declare(self, nodes.SETTINGS)
        cameras = nodes.camera_names(values['cameras'])
        check_engine(values['engine'])
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._session = session
        self._host = EngineHost() if cameras else None
        self._fallback: Fallback | None = None
        self.active = self._released = False

        group = MutuallyExclusiveCallbackGroup()
        self._responder = Responder(self)
        waiters = threading.BoundedSemaphore(MAX_WAITERS)
        self._parts = [CameraPart(self, name, group, self._responder, waiters)
                       for name in cameras or ['']]
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._jumps = self.get_clock().create_jump_callback(
            CLOCK_JUMP, post_callback=lambda _: self._begin_anew('the clock jumped back'))

        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._period = self.get_parameter('diagnostics_period').value
        self.create_timer(self._period or HEALTH_S, self._check_health, group, clock=steady)
        if self.get_parameter('autostart').value:
            self._autostart = self.create_timer(
                1e-3, self._start, MutuallyExclusiveCallbackGroup(), clock=steady)

    def release(self) -> None:
        self._released = True
        self._stop()

    def destroy_node(self) -> None:
        for part in self._parts:
            part.close()
        self._responder.close()
        super().destroy_node()

    # Transitions.

    @logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        values = read(self, nodes.SETTINGS)
        log = self.get_logger()
        try:
            host = self._host_of(values)
            for part in self._parts:
                part.make_engine(values, self._session, host)
                if self._released:  # Before there was an engine to close.
                    raise EngineError('the engine was closed')
            log.info(f'loading the model {values["model"]}')
            for part in self._parts:
                self._start_engine(part, values['load_timeout'])
        except (EngineError, ValueError) as error:
            self._free_engines()
            if self._released:
                log.info('the node ends: the model is not loaded')
                return TransitionCallbackReturn.FAILURE
            for part in self._parts:
                part.trouble = str(error)
            log.error(f'cannot load the model: {error}')
            return TransitionCallbackReturn.FAILURE
        for part in self._parts:
            part.begin()
        return TransitionCallbackReturn.SUCCESS

    def _host_of(self, values: dict) -> Launcher | None:
        """
        Return what the sessions share, by the parameters' values; None: nothing.

        :raises ValueError: for an address, or a file, that cannot be used
        """
        if not values['engine']:
            return self._host
        if not is_address(values['engine']):
            values['model'] = nodes.whole_path(values['model'])
            return SharedHost(values['engine'], self.context.get_domain_id())
        from sww_ros.engine.link import Link  # Whoever has an engine here needs no aiohttp.
        link = Link(values['engine'], token_of(values['engine_token']),
                    authority=values['engine_authority'], quality=values['jpeg_quality'])
        values['model'] = f'of {values["engine"]}'
        if not values['fallback']:
            return link
        self._fallback = Fallback(link, nodes.whole_path(values['fallback']),
                                  nodes.session_config(values), self._session or ENGINE)
        return self._fallback

    def _start_engine(self, part: CameraPart, timeout_s: float) -> None:
        if (engine := part.engine) is None:  # The node ends.
            raise EngineError('the engine was closed')
        engine.start(timeout_s)

    @logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if any(part.engine is None for part in self._parts):  # The node ends.
            return TransitionCallbackReturn.FAILURE
        super().on_activate(state)
        self.active = True
        transport = self.get_parameter('image_transport').value
        for part in self._parts:
            if not part.watch(transport):
                return TransitionCallbackReturn.FAILURE
        self.warn_of_unknown_parameters()  # The names of the topic's QoS are known now.
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        for part in self._parts:
            part.rest()
        return super().on_deactivate(state)

    @logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free_engines()
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return TransitionCallbackReturn.SUCCESS

    def _start(self) -> None:
        self._autostart.cancel()
        if not (self.change(self.trigger_configure) and self.change(self.trigger_activate)):
            self.end(1)

    def _stop(self) -> None:
        self.active = False
        for part in self._parts:
            part.stop()
        self._free_fallback()

    def _free_engines(self) -> None:
        for part in self._parts:
            part.free_engine()
        self._free_fallback()

    def _free_fallback(self) -> None:
        fallback, self._fallback = self._fallback, None
        if fallback is not None:
            fallback.close()

    def _begin_anew(self, reason: str) -> None:
        for part in self._parts:
            part.begin_anew(reason)

    # Parameters and diagnostics.

    def _check_parameters(self, changes: list[Parameter]):
        configured = any(part.engine is not None for part in self._parts)
        return nodes.check(changes, read(self, nodes.SETTINGS), configured)

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        for parameter in changes:
            for part in self._parts:
                if parameter.name == 'prompt' and (engine := part.engine) is not None:
                    engine.keep_prompt(parameter.value)

    def _check_health(self) -> None:
        message = DiagnosticArray(status=[
            status for part in self._parts for status in statuses(part.full_name, part.health())])
        if self._period:
            message.header.stamp = self.get_clock().now().to_msg()
            self._diagnostics.publish(message)


def main(args: list[str] | None = None, *, session: str = '') -> None:
    """Run the narrator until Ctrl-C or SIGTERM; `session` opens the engine's session."""
    sys.exit(run(NAME, lambda: Narrator(session), args, threads=SHORT_CALLBACKS + MAX_WAITERS))


if __name__ == '__main__':
    main()
