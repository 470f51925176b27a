"""MQTT through paho-mqtt 2: the link to the brokers, samples from devices, and a subscriber.

`requester`, which few agents need, is imported by itself.
"""

from agent.adapters.mqtt.connection import CLOSE_S, Connection
from agent.adapters.mqtt.link import MqttLink
from agent.adapters.mqtt.session import Message, credential, reply_properties, request_properties
from agent.adapters.mqtt.source import MqttSource
from agent.adapters.mqtt.subscriber import Subscriber

__all__ = [
    "CLOSE_S",
    "Connection",
    "Message",
    "MqttLink",
    "MqttSource",
    "Subscriber",
    "credential",
    "reply_properties",
    "request_properties",
]
