"""The HTTP service on Ray Serve: replicas with a generator each, more of them under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hgt_infer.distributed.dataset import actor_settings
from hgt_infer.errors import ParameterError
from hgt_infer.generator import Generator

if TYPE_CHECKING:
    from ray.serve import Application

    from hgt_infer.server import Limits


def build_deployment(
    models: Mapping[str, str],
    *,
    limits: Limits | None = None,
    api_keys: Sequence[str] = (),
    num_replicas: int | tuple[int, int] = 1,
    target_requests: float = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    settings: Mapping[str, Any] | None = None,
) -> Application:
    """Return an application for `ray.serve.run`: the routes of `create_app`, in every replica.

    Args:
        models: name → model as in Generator; every replica loads all of them.
        limits, api_keys: see create_app. Limits are each replica's own.
        num_replicas: how many, or the fewest and the most, between which load decides.
        target_requests: that a replica answers at once where load decides.
        num_cpus, num_gpus: of each replica.
        settings: more of Generator's arguments.

    Raises:
        ParameterError: no model.

    Example:
        models = {"lilyw12_": "huggingtweets/lilyw12_"}
        ray.serve.run(build_deployment(models, num_replicas=(1, 8), num_gpus=1))
    """
    from ray import serve

    from hgt_infer.server import Limits, create_app

    if not models:
        raise ParameterError("a service needs at least one model; got none")
    scale: dict[str, Any] = {"num_replicas": num_replicas}
    if isinstance(num_replicas, tuple):
        low, high = num_replicas
        scale = {
            "autoscaling_config": {
                "min_replicas": low,
                "max_replicas": high,
                "target_ongoing_requests": target_requests,
            }
        }

    generators: dict[str, Generator] = {}  # of a replica: it gets an empty one, and fills it

    def build() -> Any:
        own = actor_settings(num_cpus, num_gpus, settings)
        generators.update({name: Generator(model, **own) for name, model in models.items()})
        return create_app(generators, limits=limits, api_keys=api_keys)

    @serve.deployment(
        **scale,
        max_ongoing_requests=(limits or Limits()).max_concurrent_requests,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
    )
    @serve.ingress(build)
    class Service:
        """A replica."""

        def check_health(self) -> None:
            """Raise where an engine died: Serve asks now and then, and replaces the replica."""
            if not all(generator.is_alive for generator in generators.values()):
                raise RuntimeError("an engine has died")

    return Service.bind()  # type: ignore[attr-defined]  # the decorators' doing
