"""`globals = true`: a server's roles beside one of its databases, as a backup of their own."""

from plane.agent import wait_until
from test_up import OK, host  # noqa: F401


def test_backed_up_verified_and_restored(host, postgres):  # noqa: F811
    host.lab.secrets.add(postgres.password)
    password = host.lab.directory / "pg.password"
    password.write_text(postgres.password)
    password.chmod(0o600)
    postgres.sql("CREATE ROLE clerk LOGIN PASSWORD 'x'; CREATE ROLE clerks; GRANT clerks TO clerk")
    postgres.sql("CREATE DATABASE shop")
    try:
        postgres.fill_existing("shop")
        host.write({
            "name": '"shop"',
            "database": f'"postgres://{postgres.superuser}@127.0.0.1:{postgres.port}/shop"',
            "password": f'"file:{password}"',
            "every": '"6h"',
            "keep": "{ last = 3 }",
            "globals": "true",
        })
        host.up()
        names = ("shop", "shop-globals")
        for name in names:
            wait_until(lambda: [run for run in host.runs(name) if run["state"] == "ok"], 60, f"a run of {name}")
            host.ok("verify", name)
        dump, roles = (host.directory / name for name in names)
        for name, path in zip(names, (dump, roles)):
            host.ok("restore", name, "--to", path)
        assert dump.read_bytes().startswith(b"PGDMP")
        text = roles.read_text()
        assert "CREATE ROLE clerk;" in text and "\\connect" not in text
        into = f"postgres://{postgres.superuser}@127.0.0.1:{postgres.port}/shop"
        refused = host.command("restore", "shop-globals", "--into", into, "--yes")
        assert refused.returncode != OK and "psql --file" in refused.stderr
        postgres.sql("DROP ROLE clerk")
        postgres.sql("DROP ROLE clerks")
        # As the message says; that the superuser is there already is an error of no weight.
        postgres.tool("psql", "--file", str(roles), "--dbname", "postgres")
        assert postgres.sql("SELECT pg_has_role('clerk', 'clerks', 'member')").strip() == "t"
        host.ok("backup", "shop-globals")
        assert len(host.runs("shop-globals")) == 2 and len(host.runs("shop")) == 1
    finally:
        postgres.sql("DROP DATABASE IF EXISTS shop WITH (FORCE)")
        postgres.sql("DROP ROLE IF EXISTS clerk")
        postgres.sql("DROP ROLE IF EXISTS clerks")
