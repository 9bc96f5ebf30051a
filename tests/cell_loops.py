"""Steps of cells written from their papers, in plain torch, for what no package on the registry has to compare with.

None shares a line with :mod:`fastrnn.cell`.  A step takes parameters by fastrnn's names, x (B, I), the states, each
(B, its size), and the extras of this step; it returns the output and the states.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = Mapping[str, Tensor]
Step = tuple[Tensor, list[Tensor]]
FUNCTIONS = {"identity": lambda v: v, "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}
FUNCTIONS |= {"leaky_relu": F.leaky_relu, "silu": F.silu}


def jordan(nonlinearity: str, output: str):
    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        s = x @ p["weight_ih"].mT + p["bias_ih"] + states[0] @ p["weight_hh"].mT + p["bias_hh"]
        y = FUNCTIONS[output](FUNCTIONS[nonlinearity](s) @ p["weight_hr"].mT + p["bias_hr"])
        return y, [y]

    return step


def reset_before_gru(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
    """ONNX's GRU with linear_before_reset 0, its gates in the order of torch's."""
    (h,) = states
    w_r, w_z, w_n = p["weight_ih"].chunk(3)
    b_r, b_z, b_n = p["bias_ih"].chunk(3)
    u_r, u_z = p["weight_hh"].chunk(2)
    e_r, e_z = p["bias_hh"].chunk(2)
    r = 1 / (1 + torch.exp(-(x @ w_r.mT + h @ u_r.mT + b_r + e_r)))
    z = 1 / (1 + torch.exp(-(x @ w_z.mT + h @ u_z.mT + b_z + e_z)))
    n = torch.tanh(x @ w_n.mT + (r * h) @ p["weight_nh"].mT + p["bias_nh"] + b_n)
    h = n + z * (h - n)
    return h, [h]


def coupled_lstm(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
    """By torch's LSTM cell, whose forget gate sees the negative of what the input gate sees: 1 - sigmoid(v)."""
    dense = {name: p[name].chunk(3) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    full = [torch.cat([i, -i, g, o]) for i, g, o in dense.values()]
    h, c = torch.lstm_cell(x, (states[0], states[1]), *full)
    return h, [h, c]


def layer_norm_lstm(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
    h, c = states
    wide, narrow = (4 * h.shape[1],), (h.shape[1],)
    s = F.layer_norm(F.linear(x, p["weight_ih"]), wide, p["w"]) + p["b"]
    i, f, g, o = (s + F.layer_norm(F.linear(h, p["weight_hh"]), wide, p["u"])).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * F.layer_norm(c, narrow, p["k"], p["d"]).tanh()
    return h, [h, c]


def layer_norm_gru(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
    (h,) = states
    wide = (3 * h.shape[1],)
    a = F.layer_norm(F.linear(x, p["weight_ih"]), wide, p["w"], p["b"]).chunk(3, 1)
    q = F.layer_norm(F.linear(h, p["weight_hh"]), wide, p["u"], p["e"]).chunk(3, 1)
    r, z = (a[0] + q[0]).sigmoid(), (a[1] + q[1]).sigmoid()
    h = torch.lerp((a[2] + r * q[2]).tanh(), h, z)
    return h, [h]


def sru(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
    (c,) = states
    u_f, u_r = F.linear(x, p["weight_ih"], p["bias_ih"]).chunk(2, 1)
    v_f, v_r = p["v"].chunk(2)
    u, x_skip = x @ p["weight_n"].mT, x @ p["weight_s"].mT
    forget, reset = (u_f + c * v_f).sigmoid(), (u_r + c * v_r).sigmoid()
    c = u + (c - u) * forget
    return x_skip + (c - x_skip) * reset, [c]


def _positive(v: Tensor) -> Tensor:
    """exp(log_g(v)) of the paper's appendix B.3, by its two halves."""
    return torch.relu(v) + torch.clamp(v, max=0).sigmoid()


def min_gru(positive: bool):
    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        n, z = F.linear(x, p["weight_ih"], p["bias_ih"]).chunk(2, 1)
        h = torch.lerp(states[0], _positive(n) if positive else n, z.sigmoid())
        return h, [h]

    return step


def min_lstm(positive: bool):
    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        f, i, n = F.linear(x, p["weight_ih"], p["bias_ih"]).chunk(3, 1)
        f, i = f.sigmoid(), i.sigmoid()
        h = f / (f + i) * states[0] + i / (f + i) * (_positive(n) if positive else n)
        return h, [h]

    return step


def slstm(heads: int):
    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        h, c, n, m = states
        i, f, z, o = (x @ p["weight_ih"].mT + p["bias_ih"] + h @ block_diagonal(p["weight_hh"], 4, heads).mT).chunk(
            4, 1
        )
        log_forget = m + F.logsigmoid(f)
        m = torch.where(n == 0, i, torch.maximum(log_forget, i))
        forget, store = torch.clamp(log_forget - m, max=0).exp(), (i - m).exp()
        c, n = torch.addcmul(store * z.tanh(), forget, c), torch.addcmul(store, forget, n)
        h = o.sigmoid() * (c / n)
        return h, [h, c, n, m]

    return step


def cfc(mode: str):
    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        both = torch.cat([x, states[0]], 1)
        inner = F.linear(both, torch.cat([p["weight_ih"], p["weight_hh"]], 1), p["bias_ih"])
        ff1, ff2, a, b = F.linear(1.7159 * torch.tanh(0.666 * inner), p["weight_ff"], p["bias_ff"]).chunk(4, 1)
        t = torch.sigmoid(a * extras["ts"][:, None] + b)
        h = ff1.tanh() * (1 if mode == "no_gate" else 1 - t) + t * ff2.tanh()
        return h, [h]

    return step


def rhn(depth: int):
    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        s, first = states[0], x @ p["weight_ih"].mT
        for k in range(depth):
            n, t = (s @ p[f"weight_U_{k}"].mT + p[f"bias_U_{k}"] + (first if k == 0 else 0)).chunk(2, 1)
            s = (n.tanh() - s) * t.sigmoid() + s
        return s, [s]

    return step


def lem(dt: float):
    """The paper's: y sees the z of this step."""

    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        y, z = states
        v_2, v_1, v_z, v_y = (x @ p["weight_ih"].mT + p["bias_ih"]).chunk(4, 1)
        w_2, w_1, w_z = (y @ p["weight_hh"].mT + p["bias_hh"]).chunk(3, 1)
        z = torch.lerp(z, torch.tanh(w_z + v_z), dt * torch.sigmoid(w_1 + v_1))
        y = torch.lerp(y, torch.tanh(z @ p["weight_ch"].mT + p["bias_ch"] + v_y), dt * torch.sigmoid(w_2 + v_2))
        return y, [y, z]

    return step


def block_gru(blocks: int):
    """``RSSM._core`` of DreamerV3's code, with its groups and its block-wise linear layers."""

    def norm(v: Tensor, gain: Tensor) -> Tensor:
        return F.silu(v * torch.rsqrt(v.square().mean(-1, keepdim=True) + 1e-4) * gain)

    def group(v: Tensor) -> Tensor:
        return v.reshape(len(v), blocks, -1)

    def step(p: Parameters, x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Step:
        (deter,) = states
        x0 = norm(F.linear(deter, p["weight_hh"], p["bias_hh"]), p["gain0"])
        x1 = norm(F.linear(x, p["weight_ih"], p["bias_ih"]), p["gain1"])
        x2 = norm(F.linear(extras["action"], p["weight_in2"], p["bias_in2"]), p["gain2"])
        # every block sees its own part of the state beside all of x0, x1 and x2
        seen = torch.cat([group(deter), torch.cat([x0, x1, x2], 1)[:, None].expand(-1, blocks, -1)], -1)
        rows = [p[name].reshape(blocks, -1, p[name].shape[1]) for name in ("weight_hid", *WIDE)]
        y = torch.einsum("bki,koi->bko", seen, torch.cat(rows, -1)).flatten(1) + p["bias_hid"]
        y = norm(y, p["gain"])
        # DreamerV3's gates stand side by side within a block
        kernel = p["weight_gru"].unflatten(0, (3, blocks, -1)).transpose(0, 1).flatten(1, 2)
        bias = p["bias_gru"].unflatten(0, (3, blocks, -1)).transpose(0, 1).flatten()
        gates = torch.einsum("bki,koi->bko", group(y), kernel) + bias.reshape(blocks, -1)
        reset, cand, update = (v.flatten(1) for v in gates.chunk(3, -1))
        update = torch.sigmoid(update - 1)
        deter = update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * deter
        return deter, [deter]

    return step


WIDE = ("weight_hid0", "weight_hid1", "weight_hid2")


def block_diagonal(weight: Tensor, gates: int, heads: int) -> Tensor:
    """The dense matrix (G*Z, K) of one of heads, (G*Z, K / heads)."""
    return torch.cat([torch.block_diag(*gate.chunk(heads)) for gate in weight.chunk(gates)])
