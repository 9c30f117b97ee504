package repo

import (
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "ubcache"

// importRule says what the packages below a folder may import of this module. Packages below the
// same folder may always import each other.
type importRule struct {
	folder string
	may    []string
}

// importRules, the longest folder first that fits counts. "…" stands for anything.
var importRules = []importRule{
	// Stand-alone: others could use them without the rest.
	{"ublk", []string{"internal/uring"}},
	{"policy", nil},
	{"attrs", nil},
	// The library for applications does its I/O by io_uring.
	{"attrs/client", []string{"attrs", "internal/uring"}},
	{"internal/uring", nil},
	{"internal/repo", nil},
	{"docs", nil},
	// The engine does no I/O, so it knows of no kernel interface.
	{"cache", []string{"policy", "attrs"}},
	// What joins them.
	{"internal", []string{"internal", "cache", "policy", "attrs", "ublk", "docs"}},
	{"cmd", []string{"…"}},
}

// testsMay lists what tests may import besides: helpers of the integration VM, and the table of
// faults that any test may add to.
var testsMay = []string{"internal/vmtest", "internal/faulttable"}

// wrongEdge says why a package must not import another, both relative to the module; it is empty
// if it may.
func wrongEdge(from, to string, test bool) string {
	if to == "" {
		return "nobody may import the root"
	}
	if strings.HasPrefix(to, "cmd/") && !strings.HasPrefix(from, "cmd/") {
		return "nobody may import commands"
	}
	var rule *importRule
	for i := range importRules {
		r := &importRules[i]
		if within(from, r.folder) && (rule == nil || len(r.folder) > len(rule.folder)) {
			rule = r
		}
	}
	if rule == nil {
		return "no rule for packages in this folder: see internal/repo and docs/design.md"
	}
	may := append([]string{rule.folder}, rule.may...)
	if test {
		may = append(may, testsMay...)
	}
	for _, folder := range may {
		if folder == "…" || within(to, folder) {
			return ""
		}
	}
	if len(rule.may) == 0 {
		return rule.folder + " imports nothing of this module"
	}
	return rule.folder + " may import only " + strings.Join(rule.may, ", ")
}

func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

// localImport is an import path relative to the module, if it is of this module.
func localImport(p string) (string, bool) {
	if p == module {
		return "", true
	}
	return strings.CutPrefix(p, module+"/")
}

// TestImports looks at every Go file, whatever its build tags.
func TestImports(t *testing.T) {
	seen := 0
	for _, file := range files(t) {
		if !strings.HasSuffix(file, ".go") || strings.Contains("/"+file, "/testdata/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), read(t, file),
			parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			to, local := localImport(p)
			if !local {
				continue
			}
			seen++
			if why := wrongEdge(path.Dir(file), to, strings.HasSuffix(file, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", file, p, why)
			}
		}
	}
	if seen < 50 {
		t.Errorf("saw only %d imports of this module", seen)
	}
}

func TestWrongEdge(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test     bool
		wrong    bool
	}{
		{from: "cache", to: "policy"},
		{from: "cache", to: "attrs"},
		{from: "cache/sim", to: "cache"},
		{from: "cache", to: "ublk", wrong: true},
		{from: "cache/sim", to: "ublk/internal/sys", wrong: true},
		{from: "cache", to: "internal/uring", wrong: true},
		{from: "cache", to: "internal/daemon", wrong: true},
		{from: "cache", to: "cached", wrong: true},
		{from: "cached", to: "cache", wrong: true},
		{from: "ublk", to: "internal/uring"},
		{from: "ublk", to: "ublk/internal/sys"},
		{from: "ublk", to: "cache", wrong: true},
		{from: "ublk", to: "internal/vmtest", wrong: true},
		{from: "ublk", to: "internal/vmtest", test: true},
		{from: "ublk", to: "internal/control", test: true, wrong: true},
		{from: "policy", to: "cache", wrong: true},
		{from: "attrs", to: "policy", wrong: true},
		{from: "attrs/shm", to: "internal/uring", wrong: true},
		{from: "attrs/client", to: "attrs/shm"},
		{from: "attrs/client", to: "internal/uring"},
		{from: "attrs/client", to: "cache", wrong: true},
		{from: "internal/uring", to: "ublk", wrong: true},
		{from: "internal/daemon", to: "cache"},
		{from: "internal/daemon", to: "ublk"},
		{from: "internal/daemon", to: "internal/uring"},
		{from: "internal/daemon", to: "cmd/ubcache", wrong: true},
		{from: "cmd/ubcache", to: "internal/daemon"},
		{from: "cmd/ubcache", to: "cache"},
		{from: "other", to: "cache", wrong: true},
		{from: "cmd/ubcache", to: "", wrong: true},
	} {
		if why := wrongEdge(c.from, c.to, c.test); (why != "") != c.wrong {
			t.Errorf("wrongEdge(%q, %q, test %t) = %q", c.from, c.to, c.test, why)
		}
	}
}
