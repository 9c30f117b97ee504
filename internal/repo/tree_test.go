package repo

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the folder of go.mod, seen from this package.
const root = "../.."

// files lists the files of the tree, with slashes and relative to root: those that git knows or
// would take. Without git (a tarball) it lists all but hidden folders and bin.
func files(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
		"--exclude-standard")
	cmd.Dir = root
	var list []string
	if out, err := cmd.Output(); err == nil {
		list = strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	} else {
		list = walk(t)
	}
	// A file that was removed is still known to git.
	list = slices.DeleteFunc(list, func(f string) bool {
		info, err := os.Lstat(filepath.Join(root, f))
		return err != nil || !info.Mode().IsRegular()
	})
	if len(list) < 100 {
		t.Fatalf("the tree has only %d files: this test does not see it", len(list))
	}
	slices.Sort(list)
	// The go command caches the results of tests by the files and folders that they open. It has
	// to notice new files too.
	for folder := range folders(list) {
		_, _ = os.ReadDir(filepath.Join(root, folder))
	}
	return slices.Compact(list)
}

func folders(files []string) map[string]bool {
	set := map[string]bool{}
	for _, f := range files {
		for f != "." {
			f = path.Dir(f)
			set[f] = true
		}
	}
	return set
}

func walk(t *testing.T) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() && (rel == ".git" || rel == "bin") {
			return fs.SkipDir
		}
		if !d.IsDir() {
			list = append(list, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// read is the content of a file of the tree. One that went away meanwhile, while somebody works
// in the tree, is empty.
func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// isText reports whether a file is for people: no NUL byte in its first part.
func isText(s string) bool { return !strings.Contains(s[:min(len(s), 8000)], "\x00") }
