# RSM_COMPILE_FLAGS(VARIABLE, FLAGS): those of FLAGS that the C compiler takes.
AC_DEFUN([RSM_COMPILE_FLAGS], [
  AC_LANG_ASSERT([C])
  $1=
  for rsm_flag in $2; do
    AC_MSG_CHECKING([whether $CC takes $rsm_flag])
    rsm_kept_CFLAGS=$CFLAGS
    CFLAGS="$CFLAGS -Werror $rsm_flag"
    AC_COMPILE_IFELSE([AC_LANG_PROGRAM([], [])],
      [AC_MSG_RESULT([yes]); AS_VAR_APPEND([$1], [" $rsm_flag"])],
      [AC_MSG_RESULT([no])])
    CFLAGS=$rsm_kept_CFLAGS
  done
  AC_SUBST([$1])
])

# RSM_VERSION_SCRIPT: whether the linker takes a GNU version script; sets the conditional HAVE_VERSION_SCRIPT.
AC_DEFUN([RSM_VERSION_SCRIPT], [
  AC_CACHE_CHECK([whether the linker takes a version script], [rsm_cv_version_script], [
    echo 'TEST_0 { global: main; local: *; };' > conftest.map
    rsm_kept_LDFLAGS=$LDFLAGS
    LDFLAGS="$LDFLAGS -Wl,--version-script=conftest.map"
    AC_LINK_IFELSE([AC_LANG_PROGRAM([], [])], [rsm_cv_version_script=yes], [rsm_cv_version_script=no])
    LDFLAGS=$rsm_kept_LDFLAGS
    rm -f conftest.map
  ])
  AM_CONDITIONAL([HAVE_VERSION_SCRIPT], [test $rsm_cv_version_script = yes])
])

# RSM_NIFTI: NIFTI_CFLAGS and NIFTI_LIBS of nifticlib's nifti2_io, which comes without a pkg-config file. Its headers
# lie in a folder nifti/ of an include path, or in the path itself, and include each other by bare names.
AC_DEFUN([RSM_NIFTI], [
  AC_ARG_VAR([NIFTI_CFLAGS], [compiler flags for nifticlib (found by itself where unset)])
  AC_ARG_VAR([NIFTI_LIBS], [linker flags for nifticlib (found by itself where unset)])
  rsm_kept_CPPFLAGS=$CPPFLAGS
  rsm_kept_LIBS=$LIBS
  AS_IF([test -z "$NIFTI_CFLAGS"], [
    # The preprocessor names the folder in its line markers: no path is written down here.
    AC_MSG_CHECKING([for the folder of nifti2_io.h])
    echo '#include <nifti/nifti1.h>' > conftest.c
    rsm_nifti_folder=`$CC -E $CPPFLAGS conftest.c 2>/dev/null |
      $SED -n 's|^# *1 "\(.*\)/nifti1\.h".*|\1|p' | $SED -n 1p`
    rm -f conftest.c
    AS_IF([test -n "$rsm_nifti_folder"], [NIFTI_CFLAGS="-I$rsm_nifti_folder"])
    AC_MSG_RESULT([${rsm_nifti_folder:-the default path}])
  ])
  CPPFLAGS="$CPPFLAGS $NIFTI_CFLAGS"
  AC_CHECK_HEADER([nifti2_io.h], [],
    [AC_MSG_ERROR([nifti2_io.h of nifticlib was not found (Debian: libnifti2-dev, libznz-dev); set NIFTI_CFLAGS])])
  AS_IF([test -z "$NIFTI_LIBS"], [NIFTI_LIBS="-lnifti2 -lznz"])
  LIBS="$NIFTI_LIBS $ZLIB_LIBS $LIBS"
  AC_MSG_CHECKING([for nifti_image_load in $NIFTI_LIBS])
  AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <nifti2_io.h>]], [[return nifti_image_load(0);]])],
    [AC_MSG_RESULT([yes])],
    [AC_MSG_RESULT([no])
     AC_MSG_ERROR([nifticlib does not link (Debian: libnifti2-dev, libznz-dev); set NIFTI_LIBS])])
  CPPFLAGS=$rsm_kept_CPPFLAGS
  LIBS=$rsm_kept_LIBS
])
