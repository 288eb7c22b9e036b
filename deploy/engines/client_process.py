"""Answering messages with a client app, in this process or in a Ray actor."""

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from metaleak.deploy.errors import one_line


def answer(app: ClientApp, message: Message) -> Message:
    """Return the reply of `app`; an exception becomes an error reply, as on Flower's nodes."""
    context = Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    try:
        return app(message, context)
    except Exception as error:  # noqa: BLE001 (whatever a client raises is its reply)
        # Imported here because an actor seldom needs this part of Flower.
        from metaleak.clients.wire.flower_private import ErrorCode

        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=one_line(error)), reply_to=message)


class ClientAppActor:
    """A Ray actor that answers messages one after another with its client app."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app

    def run(self, message: Message, names: tuple[str, ...], *arrays: ArrayRecord) -> Message:
        """Return the reply to `message`, whose array records are passed separately, with their `names`."""
        message.content = RecordDict({**message.content, **dict(zip(names, arrays, strict=True))})
        return answer(self._app, message)
