package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ubcache/cmd/ubvm/internal/debian"
	"ubcache/cmd/ubvm/internal/progress"
)

const kernelHelp = "kernel series such as 6.12, or newest"

func setupCommand() *cobra.Command {
	var kernel string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Fetch kernels and build the root image, so that runs start at once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := openMachine(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer m.close()
			series := []string{kernel}
			if kernel == "all" {
				series = debian.Series
			}
			for _, s := range series {
				c, err := m.config(cmd.Context(), s)
				if err != nil {
					return err
				}
				progress.Note("kernel %s is ready, with %s acceleration", s, c.Accel)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&kernel, "kernel", "all", kernelHelp+", or all")
	return cmd
}

func kernelsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kernels",
		Short: "Print the newest kernel of each series",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := openMachine(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer m.close()
			for _, s := range debian.Series {
				k, err := m.index.ResolveKernel(s)
				if err != nil {
					return err
				}
				var packages []string
				for _, p := range k.Packages {
					packages = append(packages, p.Name+"="+p.Version)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s\t%s\n", s, k.Release,
					strings.Join(packages, " "))
			}
			return nil
		},
	}
}
