"""The least that renews a key with the same three libraries: no lock, no rehearsal, no probe."""

import os

import dotenv
import psycopg2
import requests

dotenv.load_dotenv(os.environ["ENV_FILE"])
login = {"Login": os.environ["WEBKASSA_LOGIN"], "Password": os.environ["WEBKASSA_PASSWORD"]}
token = requests.post(os.environ["WEBKASSA_AUTH_URL"], json=login).json()["Data"]["Token"]
with psycopg2.connect(os.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
    cursor.execute("UPDATE api_keys SET api_key = %s WHERE service_name = 'Webkassa'", (token,))
