from support.model_folders import model_folder  # noqa: F401 - a fixture
