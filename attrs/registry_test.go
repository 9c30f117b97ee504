package attrs

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of the documents and the golden file anew")

func TestRegistry(t *testing.T) {
	names := map[string]bool{}
	for i, a := range registry[1:] {
		if int(a.ID) != i+1 || a.Name == "" || a.Doc == "" || a.Layout == "" || a.Direction == 0 {
			t.Errorf("row %d is incomplete: %+v", i+1, a)
		}
		if names[a.Name] {
			t.Errorf("two attributes are called %s", a.Name)
		}
		names[a.Name] = true
		if got, ok := Lookup(a.Name); !ok || got.ID != a.ID {
			t.Errorf("Lookup(%s) = %d, %t", a.Name, got.ID, ok)
		}
		// What a program prints is what the registry lists, and the range ends with the names.
		if a.Size == 1 && int(a.max) != len(a.Values)-1 {
			t.Errorf("%s: values to %d, %d names", a.Name, a.max, len(a.Values))
		}
	}
	if _, ok := Lookup(""); ok {
		t.Error("the empty name was found")
	}
}

// TestTable looks for every attribute, and every name of a value, in the manual's table.
func TestTable(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(Table()), "\n")
	if len(rows) != 2+len(Attributes()) {
		t.Fatalf("%d rows for %d attributes", len(rows)-2, len(Attributes()))
	}
	for i, a := range Attributes() {
		cells := strings.Split(rows[i+2], "|")
		if len(cells) != 9 {
			t.Fatalf("%q has %d cells", rows[i+2], len(cells)-2)
		}
		if strings.TrimSpace(cells[1]) != strconv.Itoa(int(a.ID)) ||
			strings.TrimSpace(cells[2]) != a.Name || !strings.Contains(cells[7], a.Doc) {
			t.Errorf("row of %s: %s", a.Name, rows[i+2])
		}
		for _, v := range a.Values {
			if !strings.Contains(cells[5], v) {
				t.Errorf("%s: no %s in %q", a.Name, v, cells[5])
			}
		}
	}
}

// TestReasons compares the table of reasons with the constants in the source.
func TestReasons(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constants := map[Reason]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(v.Names[0].Name, "Reason") || v.Names[0].Name == "ReasonNone" {
			return true
		}
		number, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if constants[Reason(number)] != "" {
			t.Errorf("%s and %s are both %d", v.Names[0], constants[Reason(number)], number)
		}
		constants[Reason(number)] = v.Names[0].Name
		return true
	})
	if len(constants) < 20 {
		t.Fatalf("found only %d reasons in the source", len(constants))
	}
	for _, row := range reasons {
		if constants[row.r] == "" || row.text == "" || row.doc == "" {
			t.Errorf("row %+v", row)
		}
		delete(constants, row.r)
	}
	for _, name := range constants {
		t.Errorf("%s is not in the table", name)
	}
}

// TestDocumentTables keeps the tables of FORMAT.md and of the manual as the registry has them;
// -update writes them.
func TestDocumentTables(t *testing.T) {
	for file, tables := range map[string]map[string]string{
		"FORMAT.md":             {"attributes": Table(), "reasons": ReasonTable()},
		"../docs/attributes.md": {"attributes": Table()},
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := string(b)
		for mark, table := range tables {
			before, rest, ok := strings.Cut(want, "<!-- "+mark+" -->\n")
			_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
			if !ok || !ok2 {
				t.Fatalf("%s has no place for the table of %s", file, mark)
			}
			want = before + "<!-- " + mark + " -->\n" + table + "<!-- end -->\n" + after
		}
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if want != string(b) {
			t.Errorf("%s differs from the registry: go test ./attrs -update", file)
		}
	}
}
