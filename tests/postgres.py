"""A PostgreSQL server of the tests' own: started in a folder of its own on a unix socket, stopped at the end."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

OPTIONS = ("listen_addresses=", "fsync=off", "full_page_writes=off", "log_statement=all", "max_connections=40")


def binaries() -> Path | None:
    """The folder of the newest `initdb` and `postgres`; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda each: int(each.parts[-3]))
    installed = shutil.which("postgres")
    folder = found[-1].parent if found else Path(installed).resolve().parent if installed else None
    return folder if folder and (folder / "initdb").exists() else None


def unprivileged() -> str | None:
    """Whom the server runs as: it refuses to run as root. None: as who we are."""
    if os.geteuid() != 0:
        return None
    names = {each.pw_name for each in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Server:
    """One server; `log`: what it says, every statement included."""

    def __init__(self, bin_: Path, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self._bin = bin_
        self._user = unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_databases = 0
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        subprocess.run(
            [bin_ / "initdb", "-D", folder / "data", "-U", "warmline", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            check=True,
            capture_output=True,
            timeout=120,
            cwd=folder,
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
        )

    def start(self) -> None:
        options = [word for each in OPTIONS for word in ("-c", each)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder, *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self.connect("postgres").close()
                return
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # its "fast" shutdown: clients are cut off
            self._process.wait(60)
            self._process = None

    def connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.folder), user="warmline", dbname=database, autocommit=True)

    def new_database(self) -> str:
        """The address of a database of its own."""
        self._num_databases += 1
        name = f"test_{self._num_databases}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://warmline@/{name}?host={self.folder}"


@contextlib.contextmanager
def running() -> Iterator[Server | None]:
    """A started server, None where PostgreSQL is not installed. Its folder may be entered by whom it runs as."""
    bin_ = binaries()
    if bin_ is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="warmline-pg-"))
    folder.chmod(0o755)
    server = Server(bin_, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
