"""A server on this machine that speaks the protocol of the Hugging Face hub, for tests."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

COMMIT = hashlib.sha1(b'commit').hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Serves ``folder/ORG/NAME/...`` at revisions ``main`` and ``COMMIT``; takes small commits."""

    folder: Path
    requests: list[str]

    def do_HEAD(self):
        repo, (_, revision, *file) = self.split()
        path = self.folder / repo / '/'.join(file)
        if not (self.folder / repo).is_dir():
            return self.answer(404, b'', {'X-Error-Code': 'RepoNotFound'})
        if revision not in ('main', COMMIT):
            return self.answer(404, b'', {'X-Error-Code': 'RevisionNotFound'})
        if not path.is_file():
            return self.answer(404, b'', {'X-Error-Code': 'EntryNotFound'})
        tag = hashlib.sha256(path.read_bytes()).hexdigest()
        headers = {'ETag': f'"{tag}"', 'X-Repo-Commit': COMMIT, 'Accept-Ranges': 'none'}
        return self.answer(200, path.read_bytes(), headers)

    def do_GET(self):
        repo, (kind, *_) = self.split()
        root = self.folder / repo
        if kind == 'resolve' or not root.is_dir():
            return self.do_HEAD()
        if kind == 'revision':
            return self.send(dict(id=repo, sha=COMMIT, private=False, siblings=[], tags=[]))
        files = [path for path in sorted(root.rglob('*')) if path.is_file()]
        sizes = {str(path.relative_to(root)): path.stat().st_size for path in files}
        entry = dict(type='file', oid='0' * 40)
        return self.send([dict(entry, path=path, size=size) for path, size in sizes.items()])

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if self.path == '/api/repos/create':
            asked = json.loads(body)
            repo = f'{asked["organization"]}/{asked["name"]}'
            (self.folder / repo).mkdir(parents=True, exist_ok=True)
            is_private = asked.get('private') or asked.get('visibility') == 'private'
            self.requests.append(f'create {repo} private={is_private}')
            return self.send(dict(url=f'http://{self.headers["Host"]}/{repo}'))
        repo, (kind, *_) = self.split()
        if kind == 'preupload':
            names = [file['path'] for file in json.loads(body)['files']]
            regular = dict(uploadMode='regular', shouldIgnore=False, oid=None)
            return self.send(dict(files=[dict(path=name, **regular) for name in names]))
        for line in map(json.loads, body.splitlines() if kind == 'commit' else []):
            if line['key'] == 'file':
                content = base64.b64decode(line['value']['content'])
                (self.folder / repo / line['value']['path']).write_bytes(content)
        url = f'http://{self.headers["Host"]}/{repo}'
        return self.send(dict(success=True, commitOid=COMMIT, commitUrl=f'{url}/commit/{COMMIT}'))

    def split(self):
        """Return ``ORG/NAME`` and the rest of the path; log the request."""
        self.requests.append(f'{self.command} {self.path}')
        parts = urlsplit(self.path).path.removeprefix('/api/models').strip('/').split('/')
        return '/'.join(parts[:2]), [*parts[2:], '', ''][: max(2, len(parts) - 2)]

    def send(self, content):
        self.answer(200, json.dumps(content).encode(), {'Content-Type': 'application/json'})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serve(folder):
    """Serve ``folder``; yield the address and the list of requests."""
    handler = type('Handler', (Hub,), dict(folder=folder, requests=[]))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}', handler.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
