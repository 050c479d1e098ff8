"""Conformance suites for authors of plug-ins: subclass one in your tests and give it one fixture."""

from .case import Case as Case
from .kernel import KernelSuite as KernelSuite
from .method import MethodSuite as MethodSuite
