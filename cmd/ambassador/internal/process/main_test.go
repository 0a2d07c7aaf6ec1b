package process

import (
	"os"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestMain(m *testing.M) {
	switch os.Getenv(cmdtest.As) {
	case "command":
		os.Exit(cmdtest.BeCommand(os.Args[1:]))
	case "sandboxed":
		os.Exit(beSandboxed(os.Args[1], os.Args[2:]))
	}
	os.Exit(m.Run())
}
