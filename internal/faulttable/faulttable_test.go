package faulttable

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows")
	for _, r := range []Row{
		{Fault: "SSD: reads fail", Place: "6.12", Times: 2},
		{Fault: "power cut", Place: "6.12", Times: 3},
		{Fault: "SSD: reads fail", Place: "6.12", Times: 5},
		{Fault: "SSD: reads fail", Place: "7.3", Times: 1},
	} {
		if err := Append(file, r); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	good, err := Print(&b, Merge(rows))
	if err != nil || !good {
		t.Errorf("good %t, %v", good, err)
	}
	const want = `fault            where  times  data lost  wrong data  errors  
SSD: reads fail  6.12   7      0          0           0       
power cut        6.12   3      0          0           0       
SSD: reads fail  7.3    1      0          0           0       
all 3                   11     0          0           0       
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestBadRowsFail(t *testing.T) {
	for name, r := range map[string]Row{
		"lost": {Times: 1, Lost: 1}, "wrong": {Times: 1, Wrong: 1}, "errors": {Times: 1, Errors: 1},
		"failed": {Times: 1, Failed: true}, "never tried": {},
	} {
		var b strings.Builder
		// A good row of the same name does not cover it.
		rows := []Row{r, {Times: 0}}
		if good, err := Print(&b, Merge(rows)); good || err != nil || !strings.Contains(b.String(), "FAIL") {
			t.Errorf("%s: good %t, %v\n%s", name, good, err, b.String())
		}
	}
}

func TestMissing(t *testing.T) {
	var rows []Row
	for _, name := range Required {
		rows = append(rows, Row{Fault: name, Place: "7.10.4+deb13-cloud-amd64", Times: 1})
	}
	rows = append(rows, Row{Fault: "power cuts", Place: PlaceSimulator, Times: 1})
	if _, missing := Missing(rows); len(missing) != 0 {
		t.Errorf("missing: %q", missing)
	}
	// What an older kernel has does not count, nor what the simulator has.
	for _, place := range []string{"7.9.5+deb13-cloud-amd64", PlaceSimulator} {
		rows[3].Place = place
		if kernel, missing := Missing(rows); !slices.Equal(missing, Required[3:4]) || kernel != rows[0].Place {
			t.Errorf("of %s are missing %q", kernel, missing)
		}
	}
	if _, missing := Missing(nil); len(missing) != len(Required) {
		t.Errorf("%d are missing of an empty table", len(missing))
	}
}

func TestReadDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows")
	if err := os.WriteFile(file, []byte("{\"fault\":\"x\",\"times\":1}\nnonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("damaged line: %v", err)
	}
}
