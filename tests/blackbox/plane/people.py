"""Where notifications arrive: an HTTP server for webhooks, a bot and pings, and a mail server with STARTTLS."""

import email
import email.policy
import http.server
import json
import socketserver
import ssl
import threading


class _Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        server = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.heard.append((self.path, headers, body))
        status = next((status for path, status in server.refuse.items() if self.path.startswith(path)), 200)
        # As many servers do: the answer quotes the path, which is the secret.
        answer = json.dumps({"ok": status == 200, "description": f"{self.path} {self.headers.get('X-Auth')}"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Web:
    """Keeps (path, headers, body); `refuse` maps the beginning of a path to a status."""

    def __init__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
        self.server.heard, self.server.refuse = [], {}
        self.heard, self.refuse = self.server.heard, self.server.refuse
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bodies(self, path):
        """What came for paths that begin so."""
        return [json.loads(body) for to, _, body in list(self.heard) if to.startswith(path)]

    def paths(self, path):
        return [to for to, _, _ in list(self.heard) if to.startswith(path)]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Mail(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line.encode() + b"\r\n")
        self.wfile.flush()

    def handle(self):
        try:
            self.dialogue()
        except (OSError, ValueError):
            pass

    def dialogue(self):
        server, secure, lines = self.server, False, []
        self.say("220 ready")
        while line := self.rfile.readline(4096):
            assert line.endswith(b"\r\n"), line
            line = line.rstrip(b"\r\n").decode()
            (lines if secure else server.clear).append(line)
            verb = line.split()[0].upper()
            if verb == "EHLO":
                self.say("250-mail.test")
                self.say("250 AUTH PLAIN LOGIN" if secure else "250 STARTTLS")
            elif verb == "STARTTLS":
                self.say("220 go on")
                self.connection = server.context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
                secure = True
            elif verb == "AUTH":
                self.say("235 welcome" if line == server.login else f"535 not {line}")
            elif verb in ("MAIL", "RCPT"):
                self.say("250 ok")
            elif verb == "DATA":
                self.say("354 go on")
                text = b""
                while (line := self.rfile.readline(4096)) != b".\r\n":
                    assert line, "cut in the middle"
                    text += line[1:] if line.startswith(b".") else line
                mail = email.message_from_bytes(text, policy=email.policy.default)
                assert not mail.defects, mail.defects
                server.mails.append((lines, mail))
                self.say("250 queued")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("500 what")


class _MailServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class Mail:
    """Keeps (commands, parsed mail); takes this login (base64) only."""

    def __init__(self, context: ssl.SSLContext, login):
        self.server = _MailServer(("127.0.0.1", 0), _Mail)
        self.server.context, self.server.login = context, f"AUTH PLAIN {login}"
        self.server.mails, self.server.clear = [], []
        self.mails, self.clear = self.server.mails, self.server.clear
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def subjects(self):
        return [str(mail["subject"]) for _, mail in list(self.mails)]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
