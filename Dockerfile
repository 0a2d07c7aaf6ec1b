# The static binary alone, on nothing.
#
#   docker build -t ambassador .
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
# Not -buildmode=pie: without cgo it makes a binary that wants an interpreter, and
# scratch has none.
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/ambassador ./cmd/ambassador
# scratch has no mkdir: the folders that have to exist are made here.
RUN mkdir -p /out/run/ambassador /out/tmp && chmod 1777 /out/tmp

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# The admin socket's folder belongs to the user that we run as.
COPY --from=build --chown=65532:65532 /out/run/ambassador /run/ambassador
COPY --from=build /out/tmp /tmp
COPY --from=build /out/ambassador /ambassador
ENV RUNTIME_DIRECTORY=/run/ambassador
USER 65532:65532
ENTRYPOINT ["/ambassador"]
CMD ["run"]
