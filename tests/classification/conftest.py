import pytest

from tests.classification.tiny import write_data


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with train/, val/, train.txt, val.txt and map_to_10.txt."""
    return write_data(tmp_path_factory.mktemp("digits"))
