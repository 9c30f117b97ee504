package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"ubcache/internal/faulttable"
)

// faultsCommand prints the table that ends make test.
func faultsCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "faults FOLDER",
		Short: "Print the table of faults that tests have noted below a folder; fail if a row is not all zero",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			rows, err := readFaults(args[0])
			if err != nil {
				return err
			}
			if len(rows) == 0 {
				return errors.New("no test has noted any fault")
			}
			good, err := faulttable.Print(os.Stdout, faulttable.Merge(rows))
			if err == nil && !good {
				err = errors.New("the table of faults has rows that are not all zero")
			}
			if all {
				err = errors.Join(err, complete(rows))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "fail as well if a row is missing that the newest kernel must have")
	return cmd
}

// complete fails if a fault has not been tried on the newest kernel.
func complete(rows []faulttable.Row) error {
	kernel, missing := faulttable.Missing(rows)
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("the table of faults has no row of Linux %s for\n  %s", kernel, strings.Join(missing, "\n  "))
}

// readFaults reads the rows of all files *.jsonl below a folder.
func readFaults(folder string) (rows []faulttable.Row, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".jsonl" {
			return err
		}
		more, err := faulttable.Read(path)
		rows = append(rows, more...)
		return err
	})
	return rows, err
}
