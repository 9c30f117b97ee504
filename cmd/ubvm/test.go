package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ubcache/cmd/ubvm/internal/frame"
	"ubcache/cmd/ubvm/internal/progress"
	"ubcache/cmd/ubvm/internal/vm"
)

// testFlags are those of ubvm test beside runFlags.
type testFlags struct {
	packages []string
	run      string
	verbose  bool
	race     bool
}

func testCommand() *cobra.Command {
	var f runFlags
	var tf testFlags
	cmd := &cobra.Command{
		Use:   "test --pkg ./PACKAGE… [flags] [-- test binary flag…]",
		Short: "Compile packages' tests with the build tag vm and run them in the guest",
		RunE: func(cmd *cobra.Command, extra []string) error {
			if len(tf.packages) == 0 {
				return errors.New("no package: give at least one --pkg ./PACKAGE")
			}
			return f.boot(cmd.Context(), func(m *machine, c *vm.Config) error {
				if err := m.addUbcache(cmd.Context(), c, tf.race); err != nil {
					progress.Note("%v\ngoing on without ubcache; tests that need it will fail", err)
				}
				return m.addTests(cmd.Context(), c, &f, &tf, extra)
			}, bootTests)
		},
	}
	f.add(cmd.Flags(), 30*time.Minute)
	fs := cmd.Flags()
	fs.StringArrayVar(&tf.packages, "pkg", nil, "package to test, such as ./ublk")
	fs.StringVar(&tf.run, "run", "", "run only tests that match this expression")
	fs.BoolVarP(&tf.verbose, "verbose", "v", false, "print every test")
	fs.BoolVar(&tf.race, "race", false, "build with the race detector (needs a C compiler)")
	return cmd
}

// addUbcache puts the command under test on the guest's PATH.
func (m *machine) addUbcache(ctx context.Context, c *vm.Config, race bool) error {
	const pkg = "./cmd/ubcache"
	args := []string{"build"}
	if race {
		args = append(args, "-race")
	}
	file, err := m.goTool(ctx, "ubcache", append(args, pkg)...)
	if err != nil {
		return err
	}
	c.Files["bin/ubcache"] = file
	return nil
}

// addTests compiles each package's tests and adds a step for it. A test runs, as with go test, in
// its package's folder, of which the guest has the testdata. Of the rest of the tree it has the README.
func (m *machine) addTests(ctx context.Context, c *vm.Config, f *runFlags, tf *testFlags, extra []string) error {
	c.Files["src/README.md"] = filepath.Join(m.source, "README.md")
	for _, pkg := range tf.packages {
		rel := filepath.Clean(pkg)
		name := strings.ReplaceAll(rel, "/", "-") + ".test"
		build := []string{"test", "-c", "-tags", "vm"}
		if tf.race {
			build = append(build, "-race")
		}
		done := progress.Start("compiling tests of " + pkg)
		file, err := m.goTool(ctx, name, append(build, "./"+rel)...)
		if errors.Is(err, errNoTests) {
			return fmt.Errorf("%s: no test files with the build tag vm", pkg)
		}
		if err != nil {
			return err
		}
		done()
		guest := "src/" + rel
		c.Files[guest+"/"+name] = file
		testdata := filepath.Join(m.source, rel, "testdata")
		if _, err := os.Stat(testdata); err == nil {
			c.Files[guest+"/testdata"] = testdata
		}
		args := []string{"/job/" + guest + "/" + name, "-test.timeout=" + (f.timeout * 9 / 10).String()}
		if tf.verbose {
			args = append(args, "-test.v")
		}
		if tf.run != "" {
			args = append(args, "-test.run="+tf.run)
		}
		c.Job.Steps = append(c.Job.Steps, frame.Step{
			Name: "ubcache/" + rel, Dir: guest, Args: append(args, extra...),
		})
	}
	return nil
}

// bootTests runs the steps and ends with one line per package, as go test does.
func bootTests(ctx context.Context, c *vm.Config) error {
	var lines []string
	start := time.Now()
	c.OnExit = func(step frame.Step, st frame.Status) {
		verdict := "ok  "
		if st.Code != 0 {
			verdict = "FAIL"
		}
		line := fmt.Sprintf("%s\t%s\t%.3fs", verdict, step.Name, time.Since(start).Seconds())
		if st.Text != "" {
			line += "\t" + st.Text
		}
		start = time.Now()
		lines = append(lines, line)
		fmt.Fprintln(c.Stdout, line)
	}
	err := boot(ctx, c)
	if len(c.Job.Steps) > 1 {
		fmt.Fprintf(c.Stdout, "\nsummary:\n%s\n", strings.Join(lines, "\n"))
	}
	for _, step := range c.Job.Steps[len(lines):] {
		fmt.Fprintf(c.Stdout, "FAIL\t%s\tdid not end\n", step.Name)
	}
	return err
}
