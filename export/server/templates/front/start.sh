#!/bin/sh
# Starts nginx in front of the server. The environment may set:
#   SERVER     where the server listens for HTTP (127.0.0.1:8000)
#   HEALTH     where its supervisor answers probes (127.0.0.1:8003)
#   LISTEN     where callers connect (8080)
#   TLS        a folder with tls.crt and tls.key (/etc/kontext/tls); without a certificate there is no encryption
#   MOST_BODY  largest request (4m: many of 8 MB at once ended release 24.10 of the server)
#   REQUESTS   requests a second of one address (10), BURST more at once (40)
#   EDITS      requests of one address at a time (32), ALL_EDITS of all addresses (512)
#   SILENCE   longest silence of the server during a request, with the queue (1800)
#   PROXIES    addresses of load balancers whose X-Forwarded-For names the caller, such as 10.0.0.0/8
#   STATE      a folder for nginx's own files (one for this user and port in TMPDIR)
# SIGQUIT ends it once the edits in flight are answered, SIGTERM and Ctrl-C at once; SIGHUP reads the settings again.
set -eu
fail() {
  echo "error: $$1" >&2
  exit 2
}
front=$$(cd "$$(dirname "$$0")" && pwd)
port=$$(printf %s "$${LISTEN:-8080}" | tr -c '[:alnum:]' _)
state=$${STATE:-$${TMPDIR:-/tmp}/kontext-front-$$(id -u)-$$port}
tls=$${TLS:-/etc/kontext/tls}
case $$state in /*) ;; *) state=$$PWD/$$state ;; esac
for name in "$$state" "$$front" "$$tls"; do # they go into nginx's configuration
  case $$name in *[!A-Za-z0-9._/@:+,=~-]*) fail "$$name: only letters, digits and ._/@:+,=~- can be in the name" ;; esac
done
mkdir -p "$$state" 2>/dev/null || fail "$$state cannot be made: name a folder as STATE"
if [ -z "$${STATE:-}" ]; then # in a folder where others may write
  [ ! -L "$$state" ] && [ -O "$$state" ] && [ -z "$$(find "$$state" -maxdepth 0 -perm /022)" ] ||
    fail "$$state is a link, or others can write to it: name a folder of yours as STATE"
  chmod 755 "$$state" # nginx's workers are another user
fi
exec 9>>"$$state/lock" # nginx keeps it open, so it is locked while a process of it lives
if command -v flock >/dev/null; then flock -n 9 || fail "another front runs with $$state, or its workers still do"; fi
listen="listen $${LISTEN:-8080};"
if [ -e "$$tls/tls.crt" ]; then
  listen="listen $${LISTEN:-8080} ssl; ssl_certificate $$tls/tls.crt; ssl_certificate_key $$tls/tls.key;"
  listen="$$listen ssl_protocols TLSv1.2 TLSv1.3;"
fi
real_ip=
for proxy in $${PROXIES:-}; do real_ip="$$real_ip set_real_ip_from $$proxy;"; done
[ -z "$$real_ip" ] || real_ip="$$real_ip real_ip_header X-Forwarded-For; real_ip_recursive on;"
user= # the image runs as another user than root; where root starts it, the workers are www-data's
[ "$$(id -u)" != 0 ] || user="user $${WORKERS:-www-data};"
sed -e "s|@SERVER@|$${SERVER:-127.0.0.1:8000}|" -e "s|@HEALTH@|$${HEALTH:-127.0.0.1:8003}|" \
  -e "s|@LISTEN@|$$listen|" -e "s|@REAL_IP@|$$real_ip|" -e "s|@USER@|$$user|" \
  -e "s|@MOST_BODY@|$${MOST_BODY:-4m}|" -e "s|@REQUESTS@|$${REQUESTS:-10}|" -e "s|@BURST@|$${BURST:-40}|" \
  -e "s|@EDITS@|$${EDITS:-32}|" -e "s|@ALL_EDITS@|$${ALL_EDITS:-512}|" -e "s|@SECONDS@|$${SILENCE:-1800}|" \
  -e "s|@STATE@|$$state|g" -e "s|@FRONT@|$$front|" "$$front/nginx.conf" >"$$state/nginx.conf.new"
mv -f "$$state/nginx.conf.new" "$$state/nginx.conf"
exec nginx -c "$$state/nginx.conf" -g "daemon off;"
