from tests.prefect_server import prefect_server as prefect_server
