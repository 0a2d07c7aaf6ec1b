package l4

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// waiters lists the functions that wait without leaving the loop first, and why no
// session runs them on a loop.
var waiters = map[string]string{
	"Server.Shutdown":                 "called by the process",
	"Server.drain":                    "Shutdown's goroutine",
	"Server.drainSessions":            "Shutdown's goroutine",
	"listener.backOff":                "the accept loop's goroutine",
	"upstream.Upstream.run":           "the upstream's goroutine",
	"upstream.Upstream.ask":           "the upstream's goroutine",
	"upstream.Upstream.awaitDemand":   "the upstream's goroutine",
	"upstream.Upstream.resolve":       "discover runs it by task.Go, refresh in the upstream's goroutine",
	"upstream.Upstream.keepFollowing": "the upstream's goroutine, or one of a trial",
	"upstream.preconnectedPool.run":   "the upstream's goroutine",
	"upstream.preconnected.claim":     "ConnectFor leaves before it takes a preconnected connection",
	"watch.Watch.Stop":                "there is a watcher only if the task has left",
	"netconn.Bound":                   "the AfterFunc exists only if the task has left",
}

// onLoops lists the packages whose functions sessions run on a loop.
var onLoops = []string{".", "handshake", "limits", "netconn", "upstream", "watch"}

// TestWaitsLeaveTheLoop asserts that every function of these packages which waits (on a
// channel, a select, a WaitGroup) gives its task a goroutine first, by package task, or
// is in the list of those that no session runs on a loop. What a socket waits for is
// relay's: it leaves by relay.Leaver. A function literal that other
// goroutines run (go, task.Go, AfterFunc, WaitGroup.Go) may wait.
func TestWaitsLeaveTheLoop(t *testing.T) {
	var files []string
	for _, dir := range onLoops {
		found, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(found), err)
		}
		files = append(files, found...)
	}
	seen := map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			at, waits := firstWait(f.Body)
			if !waits {
				continue
			}
			called := funcName(f)
			if file.Name.Name != "l4" {
				called = file.Name.Name + "." + called
			}
			seen[called] = true
			if waiters[called] == "" {
				t.Errorf("%s: %s waits on its caller's goroutine, which may be a loop: call task.Leave first, or use task.Wait or task.Go; or list it in waiters with the reason", fset.Position(at), called)
			}
		}
	}
	for name := range waiters {
		if !seen[name] {
			t.Errorf("%s is in waiters, and does not wait without leaving", name)
		}
	}
}

// funcName is "Type.method" or "function".
func funcName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	recv := f.Recv.List[0].Type
	if star, ok := recv.(*ast.StarExpr); ok {
		recv = star.X
	}
	if index, ok := recv.(*ast.IndexExpr); ok {
		recv = index.X
	}
	return recv.(*ast.Ident).Name + "." + f.Name.Name
}

// firstWait is where a body waits for the first time without a call before it that
// leaves the loop.
func firstWait(body *ast.BlockStmt) (at token.Pos, waits bool) {
	left := token.Pos(-1)
	ast.Inspect(body, func(n ast.Node) bool {
		if waits {
			return false
		}
		switch n := n.(type) {
		case *ast.GoStmt:
			return false
		case *ast.CallExpr:
			switch name := calledName(n); {
			case name == "task.Leave", name == "task.Go", name == "task.Wait":
				left = n.Pos()
				return false
			case strings.HasSuffix(name, ".AfterFunc"), strings.HasSuffix(name, ".Go"):
				return false
			case strings.HasSuffix(name, ".Wait") && len(n.Args) == 0, name == "time.Sleep":
				at, waits = n.Pos(), left < 0
			}
		case *ast.SelectStmt:
			for _, c := range n.Body.List {
				if c.(*ast.CommClause).Comm == nil { // a default
					for _, other := range n.Body.List {
						for _, s := range other.(*ast.CommClause).Body {
							if p, w := firstWait(&ast.BlockStmt{List: []ast.Stmt{s}}); w && left < 0 {
								at, waits = p, true
							}
						}
					}
					return false
				}
			}
			at, waits = n.Pos(), left < 0
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				at, waits = n.Pos(), left < 0
			}
		}
		return !waits
	})
	return at, waits
}

// calledName is the called function as it is written, as far as that is of names.
func calledName(call *ast.CallExpr) string {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	switch x := sel.X.(type) {
	case *ast.Ident:
		return x.Name + "." + sel.Sel.Name
	case *ast.SelectorExpr:
		return x.Sel.Name + "." + sel.Sel.Name
	}
	return "." + sel.Sel.Name
}
