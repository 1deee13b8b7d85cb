"""The algorithms again, in NumPy and by hand, from the papers: no line is shared with the package."""

import itertools

import numpy as np


def mlp(layers: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output of ReLU layers and a linear last one, and the inputs of each layer."""
    inputs = []
    for number, (weight, bias) in enumerate(layers):
        inputs.append(x)
        x = x @ weight + bias
        if number < len(layers) - 1:
            x = np.maximum(x, 0)
    return x, inputs


def mlp_backward(
    layers: list[tuple[np.ndarray, np.ndarray]], inputs: list[np.ndarray], gradient: np.ndarray
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """The gradients of each layer and of the input, from that of the output."""
    gradients = []
    for number in reversed(range(len(layers))):
        weight, _ = layers[number]
        gradients.append((inputs[number].T @ gradient, gradient.sum(0)))
        gradient = gradient @ weight.T
        if number:
            gradient = gradient * (inputs[number] > 0)
    return gradients[::-1], gradient


class Adam:
    """Kingma & Ba 2015, algorithm 1."""

    def __init__(self, rate: float, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.rate, self.count = rate, 0
        self.mean = [(np.zeros_like(w), np.zeros_like(b)) for w, b in layers]
        self.square = [(np.zeros_like(w), np.zeros_like(b)) for w, b in layers]

    def step(self, layers: list, gradients: list) -> list:
        self.count += 1
        self.mean = _zip(lambda m, g: 0.9 * m + 0.1 * g, self.mean, gradients)
        self.square = _zip(lambda v, g: 0.999 * v + 0.001 * g**2, self.square, gradients)
        first, second = 1 - 0.9**self.count, 1 - 0.999**self.count
        return _zip(
            lambda p, m, v: p - self.rate * (m / first) / (np.sqrt(v / second) + 1e-8), layers, self.mean, self.square
        )


class DDPG:
    """Lillicrap et al. 2015, algorithm 1, one update, for plain networks with the action at the critic's input."""

    def __init__(self, actor, critic, target_actor, target_critic, actor_rate, critic_rate, tau, weight_decay=0.0):
        self.actor, self.critic = actor, critic
        self.target_actor, self.target_critic = target_actor, target_critic
        self.actor_adam, self.critic_adam = Adam(actor_rate, actor), Adam(critic_rate, critic)
        self.tau, self.weight_decay = tau, weight_decay

    def update(self, observation, action, reward, next_observation, discount):
        rows = len(reward)
        next_action = np.tanh(mlp(self.target_actor, next_observation)[0])
        next_q = mlp(self.target_critic, np.hstack([next_observation, next_action]))[0][:, 0]
        target = reward + discount * next_q

        q, inputs = mlp(self.critic, np.hstack([observation, action]))
        error = q[:, 0] - target
        gradients, _ = mlp_backward(self.critic, inputs, 2 * error[:, None] / rows)
        gradients = [
            (w + self.weight_decay * weight, b) for (w, b), (weight, _) in zip(gradients, self.critic, strict=True)
        ]
        self.critic = self.critic_adam.step(self.critic, gradients)

        output, actor_inputs = mlp(self.actor, observation)
        own_action = np.tanh(output)
        value, inputs = mlp(self.critic, np.hstack([observation, own_action]))
        _, input_gradient = mlp_backward(self.critic, inputs, np.full((rows, 1), 1 / rows))
        action_gradient = input_gradient[:, observation.shape[1] :]
        gradients, _ = mlp_backward(self.actor, actor_inputs, -action_gradient * (1 - own_action**2))
        self.actor = self.actor_adam.step(self.actor, gradients)

        self.target_actor = _zip(lambda t, p: (1 - self.tau) * t + self.tau * p, self.target_actor, self.actor)
        self.target_critic = _zip(lambda t, p: (1 - self.tau) * t + self.tau * p, self.target_critic, self.critic)
        return np.mean(error**2), -np.mean(value)


class TD3:
    """Fujimoto et al. 2018, algorithm 1: `policy_delay` steps of the critics, then one of the actor and the targets."""

    def __init__(self, actor, critics, target_actor, target_critics, actor_rate, critic_rate, tau, weight_decay=0.0):
        self.actor, self.critics = actor, critics
        self.target_actor, self.target_critics = target_actor, target_critics
        self.actor_adam = Adam(actor_rate, actor)
        self.critic_adams = [Adam(critic_rate, critic) for critic in critics]
        self.tau, self.weight_decay = tau, weight_decay

    def update(self, batches, noises):
        """Each batch is (observation, action, reward, next_observation, discount), each noise [B, A] is clipped."""
        losses = []
        for (observation, action, reward, next_observation, discount), noise in zip(batches, noises, strict=True):
            next_action = np.clip(np.tanh(mlp(self.target_actor, next_observation)[0]) + noise, -1, 1)
            inputs = np.hstack([next_observation, next_action])
            target = reward + discount * np.minimum.reduce([mlp(c, inputs)[0][:, 0] for c in self.target_critics])
            losses.append(0.0)
            for index, (critic, adam) in enumerate(zip(self.critics, self.critic_adams, strict=True)):
                q, kept = mlp(critic, np.hstack([observation, action]))
                error = q[:, 0] - target
                losses[-1] += np.mean(error**2)
                gradients, _ = mlp_backward(critic, kept, 2 * error[:, None] / len(reward))
                gradients = [
                    (w + self.weight_decay * weight, b) for (w, b), (weight, _) in zip(gradients, critic, strict=True)
                ]
                self.critics[index] = adam.step(critic, gradients)
        output, actor_inputs = mlp(self.actor, observation)
        own_action = np.tanh(output)
        value, kept = mlp(self.critics[0], np.hstack([observation, own_action]))
        _, gradient = mlp_backward(self.critics[0], kept, np.full((len(reward), 1), 1 / len(reward)))
        action_gradient = gradient[:, observation.shape[1] :]
        gradients, _ = mlp_backward(self.actor, actor_inputs, -action_gradient * (1 - own_action**2))
        self.actor = self.actor_adam.step(self.actor, gradients)
        follow = lambda t, p: (1 - self.tau) * t + self.tau * p  # noqa: E731
        self.target_actor = _zip(follow, self.target_actor, self.actor)
        self.target_critics = [_zip(follow, *pair) for pair in zip(self.target_critics, self.critics, strict=True)]
        return np.mean(losses), -np.mean(value)


def softmax(logits):
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def project(probabilities, reward, discount, atoms):
    """Bellemare et al. 2017, algorithm 1, atom by atom."""
    found = np.zeros_like(probabilities)
    spacing = atoms[1] - atoms[0]
    for row in range(len(reward)):
        for atom, mass in zip(atoms, probabilities[row], strict=True):
            value = min(max(reward[row] + discount[row] * atom, atoms[0]), atoms[-1])
            for index, other in enumerate(atoms):
                found[row, index] += mass * max(0.0, 1.0 - abs(value - other) / spacing)
    return found


class D4PG:
    """Barth-Maron et al. 2018, algorithm 1, one update, with soft targets."""

    def __init__(self, actor, critic, target_actor, target_critic, actor_rate, critic_rate, tau, atoms):
        self.actor, self.critic = actor, critic
        self.target_actor, self.target_critic = target_actor, target_critic
        self.actor_adam, self.critic_adam = Adam(actor_rate, actor), Adam(critic_rate, critic)
        self.tau, self.atoms = tau, atoms

    def update(self, observation, action, reward, next_observation, discount):
        rows = len(reward)
        next_action = np.tanh(mlp(self.target_actor, next_observation)[0])
        ahead = softmax(mlp(self.target_critic, np.hstack([next_observation, next_action]))[0])
        target = project(ahead, reward, discount, self.atoms)
        logits, kept = mlp(self.critic, np.hstack([observation, action]))
        probabilities = softmax(logits)
        loss = -np.mean(np.sum(target * np.log(probabilities), axis=1))
        gradients, _ = mlp_backward(self.critic, kept, (probabilities - target) / rows)
        self.critic = self.critic_adam.step(self.critic, gradients)

        output, actor_inputs = mlp(self.actor, observation)
        own_action = np.tanh(output)
        logits, kept = mlp(self.critic, np.hstack([observation, own_action]))
        probabilities = softmax(logits)
        value = probabilities @ self.atoms
        gradient = probabilities * (self.atoms - value[:, None]) / rows
        _, input_gradient = mlp_backward(self.critic, kept, gradient)
        action_gradient = input_gradient[:, observation.shape[1] :]
        gradients, _ = mlp_backward(self.actor, actor_inputs, -action_gradient * (1 - own_action**2))
        self.actor = self.actor_adam.step(self.actor, gradients)
        follow = lambda t, p: (1 - self.tau) * t + self.tau * p  # noqa: E731
        self.target_actor = _zip(follow, self.target_actor, self.actor)
        self.target_critic = _zip(follow, self.target_critic, self.critic)
        return loss, -np.mean(value)


class FastTD3:
    """Seo et al. 2025: two categorical critics, targets that follow after each step, no target actor; no decay."""

    def __init__(self, actor, critics, target_critics, actor_rate, critic_rate, tau, atoms, clipped_double):
        self.actor, self.critics, self.target_critics = actor, critics, target_critics
        self.actor_adam = Adam(actor_rate, actor)
        self.critic_adams = [Adam(critic_rate, critic) for critic in critics]
        self.tau, self.atoms, self.clipped_double = tau, atoms, clipped_double

    def update(self, batches, noises):
        losses = []
        for (observation, action, reward, next_observation, discount), noise in zip(batches, noises, strict=True):
            next_action = np.clip(np.tanh(mlp(self.actor, next_observation)[0]) + noise, -1, 1)
            inputs = np.hstack([next_observation, next_action])
            targets = [project(softmax(mlp(c, inputs)[0]), reward, discount, self.atoms) for c in self.target_critics]
            if self.clipped_double:
                first = targets[0] @ self.atoms <= targets[1] @ self.atoms
                targets = 2 * [np.where(first[:, None], *targets)]
            losses.append(0.0)
            for index, target in enumerate(targets):
                logits, kept = mlp(self.critics[index], np.hstack([observation, action]))
                probabilities = softmax(logits)
                losses[-1] -= np.mean(np.sum(target * np.log(probabilities), axis=1))
                gradients, _ = mlp_backward(self.critics[index], kept, (probabilities - target) / len(reward))
                self.critics[index] = self.critic_adams[index].step(self.critics[index], gradients)
            follow = lambda t, p: (1 - self.tau) * t + self.tau * p  # noqa: E731
            self.target_critics = [_zip(follow, *pair) for pair in zip(self.target_critics, self.critics, strict=True)]

        output, actor_inputs = mlp(self.actor, observation)
        own_action = np.tanh(output)
        values, slopes = [], []
        for critic in self.critics:
            logits, kept = mlp(critic, np.hstack([observation, own_action]))
            probabilities = softmax(logits)
            values.append(probabilities @ self.atoms)
            gradient = probabilities * (self.atoms - values[-1][:, None]) / len(reward)
            slopes.append(mlp_backward(critic, kept, gradient)[1][:, observation.shape[1] :])
        values = np.array(values)
        first = values[0] <= values[1]
        slope = np.where(first[:, None], *slopes) if self.clipped_double else (slopes[0] + slopes[1]) / 2
        value = values.min(0) if self.clipped_double else values.mean(0)
        gradients, _ = mlp_backward(self.actor, actor_inputs, -slope * (1 - own_action**2))
        self.actor = self.actor_adam.step(self.actor, gradients)
        return np.mean(losses), -np.mean(value)


class Ring:
    """A ring buffer that overwrites its oldest row."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.rows = capacity, []

    def add(self, rows) -> None:
        self.rows = (self.rows + list(rows))[-self.capacity :]


def _zip(function, *layers):
    return [
        (function(*(pair[0] for pair in pairs)), function(*(pair[1] for pair in pairs)))
        for pairs in zip(*layers, strict=True)
    ]


def tile_coding(x, low, high, num_tilings, num_tiles):
    """Sutton & Barto 2018, section 9.5.4: tiling after tiling, its first dimension fastest, the active tiles alike."""
    features = []
    for tiling in range(num_tilings):
        grid = np.zeros([num_tiles + 1] * len(x))
        place = []
        for dimension, number in enumerate(x):
            displacement = tiling * (2 * dimension + 1) % num_tilings / num_tilings  # in tiles: 1, 3, 5, ... n-ths
            inside = min(max(number, low[dimension]), high[dimension])
            place.append(int(num_tiles * (inside - low[dimension]) / (high[dimension] - low[dimension]) + displacement))
        grid[tuple(place)] = 1 / np.sqrt(num_tilings)
        features.append(grid.ravel(order="F"))
    return np.concatenate(features)


def monomials(x, low, high, order):
    """The products of up to `order` coordinates of x, scaled to [-1, 1], by degree and then as in a dictionary."""
    x = (2 * np.asarray(x) - high - low) / (np.asarray(high) - low)
    words = [()]
    for word in words:  # grows while it is read
        if len(word) < order:
            words.extend((*word, letter) for letter in range(word[-1] if word else 0, len(x)))
    return np.array([np.prod([x[letter] for letter in word]) for word in words])


def sigmoid_network(weights, x, sizes, outputs):
    """Sigmoid layers without a bias at the first and a linear last one, from weights in one row: each layer's bias,
    then its kernel, the first layer at the end."""
    widths, matrices, start = [len(x), *sizes, outputs], [], 0
    for fan_in, fan_out in itertools.pairwise(widths[1:]):
        bias = weights[start : start + fan_out]
        kernel = weights[start + fan_out : start + fan_out + fan_in * fan_out].reshape(fan_in, fan_out)
        matrices.append((kernel, bias))
        start += fan_out * (fan_in + 1)
    x = x @ weights[start:].reshape(widths[0], widths[1])
    for kernel, bias in matrices:
        x = (1 / (1 + np.exp(-x))) @ kernel + bias
    return x


def jacobian(function, weights, *inputs):
    """How each output of an analytic function moves with each weight [weights, outputs], by complex steps: exact."""
    return np.stack([np.imag(function(weights + 1e-30j * row, *inputs)) / 1e-30 for row in np.eye(len(weights))])


class COPDAC:
    """Silver et al. 2014, section 4.3 and equations 18 to 27, row by row, every gradient an explicit matrix.

    `policy(theta, s) -> [A]` and `value(v, s) -> [1]` are functions of weights in one row. A batch moves the weights by
    the mean of what its rows would.
    """

    def __init__(self, policy, value, theta, w, v, u, rates, critic="q", gradient="vanilla"):
        self.policy, self.value = policy, value
        self.theta, self.w, self.v, self.u = theta, w, v, u
        self.rates, self.critic, self.gradient = rates, critic, gradient

    def compatible(self, s, a):
        """phi(s, a) = J(s) (a - mu(s)) [weights]."""
        return jacobian(self.policy, self.theta, s) @ (a - self.policy(self.theta, s))

    def q(self, s, a):
        return self.compatible(s, a) @ self.w + self.value(self.v, s)[0]

    def targets(self, reward, next_observation, discount):
        """r + gamma Q(s', mu(s')), row by row."""
        follow = [self.q(s, self.policy(self.theta, s)) for s in next_observation]
        return np.array([r + d * q for r, d, q in zip(reward, discount, follow, strict=True)])

    def update(self, observation, action, reward, next_observation, discount):
        """One step of all weights; the errors delta of the rows before it."""
        targets = self.targets(reward, next_observation, discount)
        errors = targets - [self.q(s, a) for s, a in zip(observation, action, strict=True)]
        steps = {name: [] for name in ("theta", "w", "v", "u")}
        new_w = self.w
        if self.critic == "regression":
            new_w, new_v = self.fit(observation, action, targets)
        for s, a, s_next, d, delta in zip(observation, action, next_observation, discount, errors, strict=True):
            slope = jacobian(self.policy, self.theta, s)
            phi_sa, phi_next = self.compatible(s, a), self.compatible(s_next, self.policy(self.theta, s_next))
            phi, phi_s_next = (jacobian(self.value, self.v, x)[:, 0] for x in (s, s_next))
            steps["theta"].append(new_w if self.gradient == "natural" else slope @ (slope.T @ new_w))
            if self.critic == "q":
                steps["w"].append(delta * phi_sa)
                steps["v"].append(delta * phi)
            elif self.critic == "gq":
                steps["w"].append(delta * phi_sa - d * phi_next * (phi_sa @ self.u))
                steps["v"].append(delta * phi - d * phi_s_next * (phi_sa @ self.u))
                steps["u"].append((delta - phi_sa @ self.u) * phi_sa)
        for name, rows in steps.items():
            if rows:
                setattr(self, name, getattr(self, name) + self.rates[name] * np.mean(rows, 0))
        if self.critic == "regression":
            self.w, self.v = new_w, new_v
        return errors

    def fit(self, observation, action, targets):
        """The w and v of the least squares of targets on [phi(s, a), phi(s)], for a value linear in v."""
        rows = [
            np.append(self.compatible(s, a), jacobian(self.value, self.v, s)[:, 0])
            for s, a in zip(observation, action, strict=True)
        ]
        weights, _, rank, _ = np.linalg.lstsq(np.stack(rows), targets, rcond=None)
        assert rank == len(weights), "these rows do not determine the weights"
        return np.split(weights, [len(self.w)])


class Goddard:
    """Goddard's rocket with the height h from the center of the planet, whose surface is at 1."""

    def __init__(self):
        self.v, self.h, self.m, self.highest, self.time = 0.0, 1.0, 1.0, 1.0, 0

    def step(self, u):
        """The observation, the reward, and whether the episode terminated or was truncated, after a thrust u."""
        v, h, m = self.v, self.h, self.m
        thrust = 3.5 * u if m > 0.6 else 0.0
        drag = 310 * v * abs(v) * np.exp(-500 * (h - 1))
        self.v = v + 0.001 * ((thrust - drag) / m - 1 / h**2)
        if h == 1 and v != 0:
            self.v = 0.0
        self.h = max(h + 0.001 * v, 1.0)
        self.m = max(m - 0.001 * 2 * thrust, 0.6)
        self.highest, self.time = max(self.highest, self.h), self.time + 1
        terminated = self.m == 0.6 and self.v < 0
        truncated = self.time == 300 and not terminated
        reward = self.highest - 1 if terminated else -1.0 if truncated else 0.0
        return [self.v / 0.14, (self.h - 1) / 0.015, (self.m - 0.6) / 0.4], reward, terminated, truncated
