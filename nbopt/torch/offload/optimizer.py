"""Offload: an optimizer whose masters and states are in the host's memory."""

from operator import is_

import torch

from nbopt import checks
from nbopt.torch.hooks import hooked
from nbopt.torch.offload.hosts import Hosts
from nbopt.torch.offload.inner import Interface, give_keys, made, take_keys
from nbopt.torch.offload.turns import NeedsAllError


class Offload(Interface, torch.optim.Optimizer):
    """Train parameters on a GPU, with masters, states and the step in the host's memory.

    >>> optimizer = nbopt.torch.Offload(model, nbopt.torch.AdamW, lr=1e-3)

    Weights are those of the same optimizer without offload (with ``master_weights=True``), to the bit.

    Parameters
    ----------
    params : torch.nn.Module, or what PyTorch's optimizers take
        On one GPU, or on the CPU, where everything works as well. Of a module, those with ``requires_grad``.
    optimizer : type, callable or nbopt.Optimizer
        A class of `nbopt.torch`, or what returns such an optimizer when it is called with groups of
        parameters and the options; or a rule, for `nbopt.torch.Optimizer`. Any but Muon and others with
        functions of matrices.
    bucket_bytes : int
        Gradients and new 16-bit parameters of so many bytes are copied and updated together. Two such buckets
        take turns.
    accumulate : str
        Where gradients of several backward passes are added up: ``"device"``, by PyTorch; or ``"host"``, in
        float32, where the device keeps none after each pass.
    **options
        The optimizer's. ``master_weights=False`` leaves masters of 16-bit parameters out.

    Attributes
    ----------
    inner : Stepper
        The optimizer on the host, over tensors there. Whatever else this object is asked for (`loss_scale`,
        `skip_nonfinite`, `skipped`, `grad_norm`, `ema_decay`), it asks of that one.

    Raises
    ------
    nbopt.errors.NboptError
        One of its subclasses. A step has changed nothing then.

    Notes
    -----
    Gradients are copied during the backward pass, each as soon as it is there, as long as two buckets have
    room. If something changes one afterwards (`torch.nn.utils.clip_grad_norm_`), it is copied again, and in
    the next step all are copied in the step itself. With more than one process of `torch.distributed` they
    always are.

    In a step, each bucket is updated as soon as its gradients are there, and its parameters are copied back
    while the next one is updated. The next forward pass waits for these copies, and the host does not.

    With `gradient_clip_norm`, `skip_nonfinite` and rules with reductions over all parameters (Prodigy), the
    first update waits for all gradients. So they all have a place on the host: 2 bytes more for each 16-bit
    parameter. Without `skip_nonfinite`, gradients that are not finite go into states and parameters, as
    without offload.

    Host memory for AdamW is 12 bytes a parameter and two buckets. With ``accumulate="host"`` it is 4 bytes
    more. `host_bytes` counts it.

    ``accumulate="host"`` takes gradients away from the device, so `torch.nn.utils.clip_grad_norm_` and
    `torch.amp.GradScaler` find none: use `gradient_clip_norm`, `loss_scale` and `skip_nonfinite`. Sums begin
    again after each step, and by this optimizer's `zero_grad`.
    """

    def __init__(self, params, optimizer, bucket_bytes=2**26, accumulate="device", **options):
        self._inner = None
        bucket_bytes = checks.positive_int("bucket_bytes", bucket_bytes)
        accumulate = checks.one_of("device", "host")("accumulate", accumulate)
        if isinstance(params, torch.nn.Module):
            params = [param for param in params.parameters() if param.requires_grad]
        super().__init__(params, {})
        device = next((group["params"][0].device for group in self.param_groups if group["params"]), "cpu")
        hosts = self._hosts = Hosts(torch.device(device), bucket_bytes, accumulate == "host")
        new = hosts.paired(self.param_groups)
        masters = options.pop("master_weights", True)
        inner = made(optimizer, [hosts.group_of(group, new) for group in self.param_groups], options)
        inner.master_weights = masters
        inner._refreshes = False  # the tensors on the host hold other values between steps
        inner._pieces = hosts.turns
        hosts.take_in(new, inner, self)
        self._inner, self.defaults = inner, inner.defaults
        self._see_groups()
        take_keys(self.param_groups, inner.param_groups)

    # --- a step ---

    @hooked
    def step(self, closure=None):
        """Update all parameters that have gradients, in place; see `torch.optim.Optimizer.step`.

        The device's next work waits for the new parameters. The host does not, but for the gradients.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients and returns the loss.

        Returns
        -------
        The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._run()
        return loss

    @torch._disable_dynamo
    def _run(self):
        inner, hosts, gradients = self._inner, self._hosts, self._hosts.gradients
        self._follow_groups()
        give_keys(self.param_groups, inner.param_groups)
        pairs = hosts.see_gradients()
        hosts.make_room(inner)
        hosts.refresh(inner, pairs)
        scaler = {
            name: value.to("cpu")
            for name in ("grad_scale", "found_inf")
            if (value := getattr(self, name, None)) is not None
        }
        inner.__dict__.update(scaler)
        try:
            try:
                inner.step()
            except NeedsAllError:
                hosts.make_room(inner, needs_all=True)
                inner.step()
        finally:
            for name in scaler:
                del inner.__dict__[name]
        take_keys(self.param_groups, inner.param_groups)
        gradients.begin_again(hosts.pairs.values())

    def zero_grad(self, set_to_none=True):
        """Forget all gradients, those on the host included; see `torch.optim.Optimizer.zero_grad`."""
        super().zero_grad(set_to_none)
        self._hosts.gradients.forget(self._hosts.pairs.values())

    # --- groups and states ---

    def add_param_group(self, param_group):
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`.

        Parameters
        ----------
        param_group : dict
            It becomes an entry of `param_groups` itself. If an error is raised, the groups stay what they
            were.
        """
        if self._inner is None:
            super().add_param_group(param_group)
            return
        self._follow_groups()
        give_keys(self.param_groups, self._inner.param_groups)
        super().add_param_group(param_group)
        inner, group = self._inner, self.param_groups[-1]
        count = len(inner.param_groups)
        try:
            new = self._hosts.paired([group])
            inner.add_param_group(self._hosts.group_of(group, new))
            self._hosts.take_in(new, inner, self)
        except BaseException:
            del self.param_groups[-1], inner.param_groups[count:]
            raise
        self._see_groups()
        take_keys(self.param_groups, inner.param_groups)

    def _see_groups(self):
        self._seen = [(group, [*group["params"]]) for group in self.param_groups]
        for pair in self._hosts.pairs.values():
            self._hosts.gradients.watch(pair)

    def _follow_groups(self):
        """Have the optimizer on the host follow groups that were added, removed, moved or changed here."""
        groups, inner, hosts = self.param_groups, self._inner, self._hosts
        if len(groups) == len(self._seen) and all(
            group is own and len(group["params"]) == len(params) and all(map(is_, group["params"], params))
            for group, (own, params) in zip(groups, self._seen)
        ):
            return
        new = hosts.paired(groups)
        known = {id(group): own for (group, _), own in zip(self._seen, inner.param_groups)}
        before = [*inner.param_groups]
        try:
            inner.param_groups[:] = [known.get(id(group), {}) for group in groups]
            for group, own in zip(groups, inner.param_groups):
                own.update(hosts.group_of({**self.defaults, **group}, new))
                if "param_names" in group:
                    own["params"] = [host for _, host in own["params"]]
                    own["param_names"] = group["param_names"]
            hosts.take_in(new, inner, self)
        except BaseException:
            inner.param_groups[:] = before
            raise
        hosts.keep([param for group in groups for param in group["params"]])
        self._see_groups()
        take_keys(groups, inner.param_groups)
