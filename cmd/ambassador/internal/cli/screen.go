package cli

import (
	"io"
	"os"

	"golang.org/x/term"

	"ambassador/cmd/ambassador/internal/output"
)

// screenOf returns the screen behind w. NO_COLOR and TERM=dumb turn colour off.
func screenOf(w io.Writer, env func(string) (string, bool)) output.Screen {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return output.Screen{}
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		width = 0
	}
	noColor, _ := env("NO_COLOR")
	kind, _ := env("TERM")
	return output.Screen{Width: width, Color: noColor == "" && kind != "dumb"}
}
