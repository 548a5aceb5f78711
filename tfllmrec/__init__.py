"""Recommenders that read: text-tower recommendation on TensorFlow, Keras and TensorFlow Recommenders."""

import os

# TensorFlow Recommenders and TF Hub layers are Keras 2: this must be set before anything touches tf.keras.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
