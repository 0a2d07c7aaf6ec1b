package config

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// namedPorts are the ports of services by the names that people write for them. The
// host's own table, /etc/services, is absent in a container.
var namedPorts = map[string]int{
	"amqp": 5672, "amqps": 5671, "cassandra": 9042, "elasticsearch": 9200, "ftp": 21, "ftps": 990, "http": 80, "https": 443,
	"imap": 143, "imaps": 993, "kafka": 9092, "ldap": 389, "ldaps": 636, "memcached": 11211, "mongodb": 27017, "mqtt": 1883,
	"mssql": 1433, "mysql": 3306, "nats": 4222, "nfs": 2049, "oracle": 1521, "pop3": 110, "pop3s": 995, "postgres": 5432,
	"postgresql": 5432, "rabbitmq": 5672, "redis": 6379, "smtp": 25, "smtps": 465, "socks": 1080, "ssh": 22, "submission": 587,
}

// NamedPort returns the port of a service that is known by that name.
func NamedPort(name string) (port int, ok bool) {
	port, ok = namedPorts[strings.ToLower(name)]
	return port, ok
}

// CheckHostPort says what is wrong with a HOST:PORT.
func CheckHostPort(s string) error {
	if strings.Contains(s, ",") {
		return fmt.Errorf("%q is more than one address; give each one separately", s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is no HOST:PORT; write one like 127.0.0.1:5432 or [::1]:5432", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err == nil {
		return nil
	}
	switch n, known := NamedPort(port); {
	case known:
		return fmt.Errorf("%q: the port must be a number; %s is %d: write %s", s, port, n, net.JoinHostPort(host, strconv.Itoa(n)))
	case port == "":
		return fmt.Errorf("%q has no port; write one behind the colon, like %s5432", s, s)
	}
	return fmt.Errorf("%q: %q is no port; write a number from 1 to 65535", s, port)
}
