"""The algorithms again, in NumPy and by hand, from the papers: no line is shared with the package."""

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
