"""proxlm's exceptions come through a process pool as they were raised."""

import pickle

import pytest

from proxlm import errors

OWN = {"BadRecordError": {"kind": "empty"}, "StoppedBySignalError": {"signal": 15}}
CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling(kind: type[BaseException]) -> None:
    """One that pickle cannot make again ends a whole pool of processes, and its message is lost."""
    more = OWN.get(kind.__name__, {})
    error = kind("data.jsonl:3: the prompt is empty", *more.values())
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert (str(found), vars(found)) == (str(error), more)
    assert len(CLASSES) > 8
