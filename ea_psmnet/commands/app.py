"""`app`: a page in the browser."""

from __future__ import annotations


def app(*, host: str = "127.0.0.1", port: int = 7860, upload_limit: str = "64MiB") -> None:
    """Serve a page for the browser that predicts pairs, until Ctrl-C.

    It needs no network beyond this machine, keeps the newest results in a temporary folder and
    removes them at its end.

    Args:
        host: Address to listen on. With any address but the loopback, everybody in the network can
            use the page, without a password.
        port: Port to listen on; 0 takes a free one.
        upload_limit: Largest total size of the files of a request.
    """
    from ea_psmnet.app.engine import Engine
    from ea_psmnet.app.server import serve
    from ea_psmnet.tables import check_range, parse_bytes

    check_range("port", port, 0, 65535)
    limit = parse_bytes(upload_limit)
    with Engine() as engine:
        server = serve(engine, host, port, limit)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{server.port}/ (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()
