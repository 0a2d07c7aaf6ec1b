# The static binary alone, on nothing.
#
#   docker build -t ambassador --build-arg VERSION="$(git describe --tags --always --dirty)" .
#   docker run --rm -v ./ambassador.yaml:/etc/ambassador/ambassador.yaml:ro ambassador
#
# The default command is `run`, which reads /etc/ambassador/ambassador.yaml. In a
# pod, or with --network container:NAME, the listeners on 127.0.0.1 are the
# application's own loopback.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# Without VERSION it is the commit, if the context has the .git folder. A context
# without it, like one that docker itself has cloned, needs VERSION; COMMIT and DATE (RFC
# 3339) are optional, and are what `ambassador version` says beside it.
ARG VERSION
ARG COMMIT
ARG DATE
# The tags leave out databases that the CA never opens: a fifth of the binary.
# Not -buildmode=pie: without cgo it makes a binary that wants an interpreter, and
# scratch has none.
RUN CGO_ENABLED=0 go build -tags nobadger,nobadgerv1,nobadgerv2,nomysql,nopgx -trimpath ${VERSION:+-buildvcs=false} -ldflags "-s -w -X main.version=$VERSION -X main.commit=$COMMIT -X main.date=$DATE" -o /out/ambassador ./cmd/ambassador
RUN if /out/ambassador version | grep -q "^ambassador devel "; then echo "the version is not known: give --build-arg VERSION=..." >&2; exit 1; fi
# scratch has no mkdir: the folders that have to exist are made here. The mode of /tmp is kept
# below another folder only: engines copy the contents of a folder, and buildah not its mode.
RUN mkdir -p /out/run/ambassador /out/root/tmp && chmod 1777 /out/root/tmp

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# The admin socket's folder belongs to the user that we run as.
COPY --from=build --chown=65532:65532 /out/run/ambassador /run/ambassador
COPY --from=build /out/root/ /
COPY --from=build /out/ambassador /ambassador
ENV RUNTIME_DIRECTORY=/run/ambassador
USER 65532:65532
# It has no port to EXPOSE: the listeners are on the loopback of a container or pod.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/ambassador", "wait", "--timeout", "1s"]
ENTRYPOINT ["/ambassador"]
CMD ["run"]
